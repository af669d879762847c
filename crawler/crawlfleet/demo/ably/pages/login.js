"use strict";

const form = document.querySelector(".login-form");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  form.querySelector("p")?.remove();
  const status = await submit(form.email.value, form.password.value);
  if (status === 200) location.href = "/dashboard";
  else if (status === 401) complain("login-error", "이메일 또는 비밀번호가 올바르지 않습니다.", status);
  else complain("load-error", "일시적인 오류가 발생했습니다. 잠시 후 다시 시도해 주세요.", status);
});

async function submit(email, password) {
  try {
    const reply = await fetch("/seller/login/", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ email, password }),
    });
    return reply.status;
  } catch {
    return 0;
  }
}

function complain(kind, text, status) {
  const line = document.createElement("p");
  line.className = kind;
  line.dataset.status = status;
  line.textContent = text;
  form.append(line);
}
