// Type email and password by the native setter and with events, since the form's framework listens for these. A WebDriver
// script. Arguments: a selector and its text, twice.
const type = (css, text) => {
    const field = document.querySelector(css);
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, text);
    field.dispatchEvent(new Event('input', {bubbles: true}));
    field.dispatchEvent(new Event('change', {bubbles: true}));
};
type(arguments[0], arguments[1]);
type(arguments[2], arguments[3]);
window.crawlfleetSubmitted = true;
