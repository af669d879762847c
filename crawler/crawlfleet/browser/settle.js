// Look again and again until that has seen something, or time is up. A WebDriver script; what looks is put in as text, for
// a page may forbid `eval`.
const [given, withinMs, done] = arguments, ends = performance.now() + withinMs;
const look = function () {
/*LOOK*/
};
(function again() {
    const seen = look(...given);
    if (seen || performance.now() > ends) done(seen || null); else setTimeout(again, 50);
})();
