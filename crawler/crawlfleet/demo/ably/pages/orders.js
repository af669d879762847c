"use strict";

const options = JSON.parse(document.getElementById("options").textContent);
const app = document.getElementById("app");
const SKELETON_ROWS = 5;
const PAGES_AROUND = 4;
let latest = 0;

/** Show one page of the orders. Only the page that was asked for last is drawn. */
async function load(page) {
  const turn = ++latest;
  drawSkeleton();
  const reply = await ask(page);
  await new Promise((resolve) => setTimeout(resolve, options.drawDelayMs));
  if (turn === latest) draw(page, reply);
}

async function ask(page) {
  const asked = new URLSearchParams(location.search);
  const query = new URLSearchParams({
    start_date: asked.get("start_date") ?? "",
    end_date: asked.get("end_date") ?? "",
    page,
    per_page: options.rowsPerPage,
  });
  try {
    const reply = await fetch(`/seller/order_items/?${query}`, { headers: { Authorization: `JWT ${token()}` } });
    const body = await reply.json().catch(() => null);
    return { status: reply.status, wait: reply.headers.get("Retry-After"), body };
  } catch {
    return { status: 0 };
  }
}

function token() {
  const found = document.cookie.match(/(?:^|; )ably-seller-admin-jwt-token=([^;]*)/);
  return found ? found[1] : "";
}

function draw(page, reply) {
  if (reply.status === 401) say("session-expired", "세션이 만료되었습니다. 다시 로그인해 주세요.", 401);
  else if (reply.status !== 200 || !Array.isArray(reply.body?.order_items)) drawError(reply);
  else if (reply.body.order_items.length === 0) say("empty-state", "조회된 주문이 없습니다.", 200);
  else drawRows(page, reply.body);
}

function drawError({ status, wait }) {
  const when = wait ? `${wait}초 후` : "잠시 후";
  say("load-error", `주문을 불러오지 못했습니다. ${when} 다시 시도해 주세요.`, status);
}

function say(kind, text, status) {
  const line = element("p", { className: kind, textContent: text });
  line.dataset.status = status;
  app.replaceChildren(line);
}

/** The table with nothing but grey rows; `data-page` is set once rows are drawn. */
function drawSkeleton() {
  const cells = () => Object.keys(options.columns).map(() => element("td"));
  const rows = Array.from({ length: SKELETON_ROWS }, () => element("tr", { className: "is-skeleton" }, cells()));
  const table = app.querySelector("table.order-items");
  if (table) {
    delete table.tBodies[0].dataset.page;
    table.tBodies[0].replaceChildren(...rows);
  } else {
    app.replaceChildren(element("table", { className: "order-items" }, [heading(), element("tbody", {}, rows)]));
  }
}

function heading() {
  const cells = Object.entries(options.columns).map(([key, title]) => {
    const cell = element("th", { textContent: title });
    cell.dataset.key = key;
    return cell;
  });
  return element("thead", {}, [element("tr", {}, cells)]);
}

function drawRows(page, { order_items: items, max_page_number: last }) {
  const body = app.querySelector("table.order-items").tBodies[0];
  body.replaceChildren(...items.map(row));
  body.dataset.page = page;
  app.querySelector(".pagination")?.remove();
  app.append(pagination(page, last));
}

function row(item) {
  const line = element("tr", {}, Object.keys(options.columns).map((key) => cell(key, item)));
  line.dataset.sno = item.sno;
  return line;
}

function cell(key, item) {
  const picture = key === "goods_name" ? [element("img", { src: item.goods_image, alt: "" })] : [];
  const shown = element("td", {}, picture);
  shown.append(item[key] ?? "");
  return shown;
}

/** Buttons of the first and the last page and of those around the current one. */
function pagination(page, last) {
  const pages = Array.from({ length: last }, (_, i) => i + 1);
  const shown = pages.filter((p) => p === 1 || p === last || Math.abs(p - page) <= PAGES_AROUND);
  const bar = element("div", { className: "pagination" }, shown.map((p) => pageButton(p, p === page)));
  bar.dataset.maxPage = last;
  return bar;
}

function pageButton(page, isActive) {
  const button = element("button", { type: "button", textContent: page, className: isActive ? "is-active" : "" });
  button.dataset.page = page;
  button.addEventListener("click", () => load(page));
  return button;
}

function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function openDialog() {
  const close = element("button", { type: "button", className: "el-dialog__headerbtn", textContent: "×" });
  const notice = element("p", { textContent: "[공지] 설 연휴 배송 안내를 확인해 주세요." });
  const dialog = element("div", { className: "el-dialog" }, [close, notice]);
  const wrapper = element("div", { className: "el-dialog__wrapper" }, [dialog]);
  close.addEventListener("click", () => wrapper.remove());
  document.body.append(wrapper);
}

/** An array that no heap may hold: the renderer dies of it at once, and takes little of the machine's memory. */
function exhaustMemory() {
  "x".repeat(2 ** 28).split("");
}

function loopForEver() {
  for (;;);
}

function afterLoad(spoil) {
  addEventListener("load", () => setTimeout(spoil));
}

if (options.popup) openDialog();
if (options.alert) setTimeout(() => alert("[공지] 서비스 이용약관이 변경되었습니다."));
if (options.hang) afterLoad(loopForEver);
if (options.crash) afterLoad(exhaustMemory);
load(Number(new URLSearchParams(location.search).get("page") ?? 1));
