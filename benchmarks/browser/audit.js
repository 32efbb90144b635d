// What is wrong with a page for a reader, as a list of short texts. Runs in the page; `root` bounds what is looked at.
(root) => {
  const faults = [], body = document.querySelector(root);
  const note = (kind, what) => faults.push(`${kind}: ${String(what).replace(/\s+/g, " ").trim().slice(0, 120)}`);
  const within = (selector) => [...body.querySelectorAll(selector)];
  const seen = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  within("details").forEach((one) => { one.open = true; });

  // Nothing to scroll sideways, neither the page nor a part of it, and nothing cut off.
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) note("page is too wide", `${page.scrollWidth} px of ${page.clientWidth}`);
  for (const element of within("*")) {
    const style = getComputedStyle(element);
    if (style.overflowX === "visible" || style.display === "inline" || !seen(element)) continue;
    const beyond = element.scrollWidth - element.clientWidth;
    if (beyond > 1) note("does not fit", `<${element.localName} class="${element.className}"> by ${beyond} px`);
  }

  // Figures are there and say what they show.
  for (const image of within("img")) {
    if (!image.complete || !image.naturalWidth) note("image is not there", image.src);
    if (!(image.alt || "").trim() || /no description/i.test(image.alt)) note("image without alt text", image.src);
  }
  within("svg").filter((one) => seen(one) && !one.closest("[aria-hidden=true], button, .jp-icon-hoverShow"))
    .filter((one) => !one.getAttribute("aria-label") && !one.querySelector("title"))
    .forEach((one) => note("drawing without a name", one.outerHTML));

  // Widgets and bars are alive or gone.
  const words = body.innerText;
  for (const found of words.match(/\b(?:[HV]Box|HTML|Label|Button|Output|(?:Int|Float)Progress)\([a-z_]+=.*/g) || [])
    note("blank widget", found);
  for (const found of words.match(/^.*(?<![\d.])0 ?%\s*\|.*$/gm) || []) note("bar at 0 %", found);
  for (const bar of within("progress, [role=progressbar]"))
    if (seen(bar) && !Number(bar.value ?? bar.getAttribute("aria-valuenow"))) note("bar at 0 %", bar.outerHTML);
  for (const output of within(".output_subarea, .jp-OutputArea-output"))
    if (!output.innerText.trim() && !output.querySelector("img, svg, canvas, input, button, hr"))
      note("blank output", output.outerHTML);

  // Headings in order: one first, no step left out.
  let level = 0;
  for (const heading of within("h1, h2, h3, h4, h5, h6")) {
    const own = Number(heading.localName[1]), text = heading.innerText.trim();
    if (!text) note("heading without words", heading.outerHTML);
    if (own > level + 1) note("heading skips a level", `h${own} after h${level}: ${text}`);
    if (own === 1 && level > 0) note("second h1", text);
    level = own;
  }
  if (root === "body" && !level) note("no heading", location.href);
  if (!document.title.trim()) note("no title", location.href);
  if (!page.lang) note("no language", location.href);
  for (const link of within("a[href]")) if (!link.innerText.trim()) note("link without words", link.outerHTML);
  for (const link of within('a[href^="#"]'))
    if (!document.getElementById(decodeURIComponent(link.hash.slice(1)))) note("link to nowhere", link.hash);

  // Contrast of every text with what lies behind it, WCAG 2 level AA.
  const brush = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const parsed = (colour) => {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = colour;
    brush.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = brush.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, i) => value * a + below[i] * (1 - a));
  const probe = document.createElement("i");
  probe.style.backgroundColor = "Canvas";
  document.body.append(probe);
  const paper = parsed(getComputedStyle(probe).backgroundColor);
  probe.remove();
  const behind = (element) => {
    if (!element) return paper.slice(0, 3);
    const own = parsed(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(element.parentElement));
  };
  const light = (colour) => colour.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const texts = document.createTreeWalker(body, NodeFilter.SHOW_TEXT), told = new Set();
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
    if (!text || !seen(element) || element.closest("script, style, :disabled, [aria-hidden=true]")) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const colour = parsed(style.color);
    for (let one = element; one; one = one.parentElement) colour[3] *= Number(getComputedStyle(one).opacity);
    const [dark, bright] = [light(over(colour, ground)), light(ground)].sort((a, b) => a - b);
    const ratio = (bright + 0.05) / (dark + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio >= (large ? 3 : 4.5)) continue;
    const fault = `${ratio.toFixed(2)}:1, ${style.color} on rgb(${ground.map(Math.round)})`;
    if (!told.has(fault)) note("too little contrast", `${fault}: ${text}`);
    told.add(fault);
  }
  return faults;
}
