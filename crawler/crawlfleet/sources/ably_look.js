// The page at one glance, with its rows; closes pop-ups first. A WebDriver script. Argument: the selectors, and `api_orders`.
const s = arguments[0], find = css => document.querySelector(css);
performance.setResourceTimingBufferSize(5000);
document.querySelectorAll(s.popup + ' ' + s.popup_close).forEach(button => button.click());
const table = find(s.table), keys = table ? [...table.querySelectorAll(s.head)].map(th => th.dataset.key) : [];
const rows = table ? [...table.querySelectorAll(s.row)] : [];
const pages = find(s.pagination), current = find(s.current_page);
const asked = performance.getEntriesByType('resource')
    .filter(entry => new URL(entry.name, location).pathname === s.api_orders);
const document_ = performance.getEntriesByType('navigation')[0];
const drawn = table && table.tBodies[0] && table.tBodies[0].dataset.page;
return {
    url: location.origin + location.pathname,
    status: document_ ? document_.responseStatus : 0,
    api_status: asked.length ? asked[asked.length - 1].responseStatus : 0,
    ready: Boolean(document_ && document_.domContentLoadedEventEnd),
    text: rows.length || !document.body ? '' : document.body.innerText.slice(0, 2000),
    login: Boolean(find(s.email) && find(s.password)),
    login_error: Boolean(find(s.login_error) && find(s.login_error).textContent.trim()),
    expired: Boolean(find(s.expired)),
    home: Boolean(find(s.home)),
    loading: Boolean(find(s.skeleton)),
    empty: Boolean(find(s.empty)),
    load_error: Boolean(find(s.load_error)),
    page: Number(drawn || (current ? current.dataset.page : 0)),
    max_page: pages ? Number(pages.dataset.maxPage) : 0,
    keyed: rows.every(row => row.cells.length === keys.length),
    rows: rows.map(row => [
        row.dataset.sno, Object.fromEntries([...row.cells].map((cell, i) => [keys[i], cell.textContent.trim()])),
    ]),
    submitted: Boolean(window.crawlfleetSubmitted),
};
