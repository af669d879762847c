// Look again and again until a script has seen something, or time is up. A WebDriver script: its arguments, then `done`.
const [body, given, withinMs, done] = arguments, ends = performance.now() + withinMs;
const look = new Function(body);
(function again() {
    const seen = look(...given);
    if (seen || performance.now() > ends) done(seen || null); else setTimeout(again, 50);
})();
