// The page without anybody's data: its tags, its headings without digits and addresses, and no other word. A WebDriver script.
const kept = 'title,h1,h2,button,th';
const hide = text => text.replace(/\S+@\S+/g, 'x@x').replace(/\d/g, '0');
const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT);
const gone = [...document.querySelectorAll('script,style,link,meta,img,svg,canvas,video,iframe')];
for (let node; (node = walker.nextNode());) {
    const open = node.parentElement && node.parentElement.closest(kept);
    node.data = open ? hide(node.data) : hide(node.data).replace(/[\p{L}]/gu, 'x');
}
gone.forEach(element => element.remove());
document.querySelectorAll('*').forEach(element => element.shadowRoot && element.remove());
for (const element of document.querySelectorAll('*'))
    for (const {name, value} of [...element.attributes])
        if (!/^(class|id|name|type|role|href|action)$/.test(name)) element.setAttribute(name, value.replace(/[\p{L}\d]/gu, 'x'));
        else if (/^(href|action)$/.test(name)) element.setAttribute(name, value.split(/[?#]/)[0].replace(/\d/g, '0'));
document.querySelectorAll('input,textarea').forEach(field => { field.value = ''; });
return document.documentElement.outerHTML.replace(/\s+/g, ' ').slice(0, 8000);
