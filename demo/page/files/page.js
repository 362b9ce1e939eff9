// The page: requests, uploads, and images that arrive while others are being generated.

import { EditRun, editQuery, isEditing, openFace, setMode } from "./edit.js";
import { fromQuery, images, sentences, showNumbers, showTogether, toQuery } from "./query.js";

const byId = (id) => document.getElementById(id);
const KEPT = 8; // generations that the page shows; older ones go
const EDITS = ["add", "remove", "to", "vary", "strength", "fresh", "amount"]; // keys of a link that edits
const GONE = "the page's server does not answer; is demo/app.py still running?";
let own; // the network's settings and the page's limits
let running = null; // AbortController of the request in progress

/** Make an element: el("a", { href }, child, …). */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function icon(name) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  made.append(use);
  return made;
}

const fault = (text) => { byId("fault").textContent = text; };
const status = (text) => { byId("status").textContent = text; };

/** Return the content of a PNG from the text that stands for it in messages. */
function pngBlob(text) {
  const bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return new Blob([Uint8Array.from(bytes, (c) => c.charCodeAt(0))], { type: "image/png" });
}

// ---- images of the request

/** Read image files; they become sources, or the last of them the face that is edited. */
async function upload(files) {
  const take = isEditing()
    ? ({ thumbnail, name }, src) => openFace(thumbnail, src, name)
    : (answer, src) => images.push({ ...answer, thumbnail: src });
  fault("");
  for (const file of files) {
    if (file.size > own.limits.upload_bytes) {
      fault(`${file.name}: is larger than ${own.limits.upload_bytes / 1e6} MB; make it smaller`);
      continue;
    }
    status(`reading ${file.name}`);
    try {
      const where = `upload?${new URLSearchParams({ name: file.name })}`;
      const answer = await (await fetch(where, { method: "POST", body: file })).json();
      if (answer.error) fault(answer.error);
      else take(answer, URL.createObjectURL(pngBlob(answer.thumbnail)));
    } catch {
      fault(GONE);
    }
  }
  status("");
  showImages();
}

function showImages() {
  byId("images").replaceChildren(...images.map((image) => {
    const away = el("button", { type: "button", class: "quiet", "aria-label": `Remove ${image.name}` }, icon("away"));
    away.onclick = () => {
      images.splice(images.indexOf(image), 1);
      showImages();
      byId("file").focus();
    };
    const face = image.thumbnail ? el("img", { src: image.thumbnail, alt: "" }) : icon("image");
    return el("li", { title: image.name }, face, el("span", {}, image.name), away);
  }));
  showTogether();
}

// ---- generation

/** Yield the messages of a request. */
async function* messagesOf(query, signal) {
  const answer = await fetch("generate", { method: "POST", body: query, signal });
  if (!answer.ok) {
    yield await answer.json();
    return;
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

/** Generate what the form says, or a query that it has no fields for. */
async function generate(given) {
  cancel();
  fault("");
  const edits = isEditing() && !given;
  const query = given ?? (edits ? editQuery() : toQuery());
  if (!edits) history.replaceState(null, "", `?${query}`); // a face is no part of an address
  const mine = running = new AbortController();
  const generation = edits ? new EditRun() : new Generation();
  busy(true);
  status("starting");
  byId("results").classList.add("started");
  if (matchMedia("(max-width: 760px)").matches) byId("results").scrollIntoView();
  let problem = "";
  try {
    for await (const message of messagesOf(query, mine.signal)) {
      problem = message.error ?? problem;
      generation.take(message);
    }
    if (!problem && !generation.isWhole) problem = GONE;
  } catch (error) {
    if (error.name !== "AbortError") problem = GONE;
  }
  generation.end();
  if (running !== mine) return; // another request has taken the page
  running = null;
  busy(false);
  fault(problem);
  status(problem ? "" : mine.signal.aborted ? `cancelled: ${generation.progress}` : generation.progress);
}

/** Stop the request in progress; without one, do nothing. */
function cancel() {
  running?.abort();
}

function busy(on) {
  if (document.activeElement === byId("cancel")) byId("generate").focus({ preventScroll: true });
  byId("cancel").hidden = byId("bar").hidden = !on;
  byId("bar").removeAttribute("value");
}

/** One generation on the page: each row has places, which images fill. */
class Generation {
  constructor() {
    this.article = el("article");
    this.places = new Map();
    this.done = this.total = 0;
  }

  get progress() {
    return `${this.done} of ${this.total} image${this.total === 1 ? "" : "s"}`;
  }

  get isWhole() {
    return this.done === this.total && this.total > 0;
  }

  take({ before, rows, seeds, notes, image, grid }) {
    if (before !== undefined) status(`queued, ${before} before you`);
    if (rows) this.begin(rows, seeds, notes);
    if (image) this.fill(image);
    if (grid) this.article.append(this.download(grid));
  }

  begin(rows, seeds, notes) {
    this.total = rows.length * seeds.length;
    // Rows of one image each, as in an interpolation, share a line.
    const shared = seeds.length === 1 && rows.length > 1 ? el("div", { class: "row" }) : null;
    for (const note of notes) this.article.append(el("p", { class: "note" }, note));
    if (shared) this.article.append(el("h2", {}, `${rows[0]} … ${rows.at(-1)}`), shared);
    rows.forEach((label, row) => {
      const line = shared ?? el("div", { class: "row" });
      if (!shared) this.article.append(el("h2", {}, label), line);
      for (const seed of seeds) {
        const title = shared ? label : `seed ${seed}`;
        const place = el("figure", {}, el("div", { class: "wait" }), el("figcaption", {}, el("span", { title }, title)));
        place.dataset.label = label;
        this.places.set(`${row} ${seed}`, place);
        line.append(place);
      }
    });
    byId("generations").querySelector(".empty")?.remove();
    byId("generations").prepend(this.article);
    for (const old of [...byId("generations").children].slice(KEPT)) {
      for (const { src } of old.querySelectorAll("img")) URL.revokeObjectURL(src);
      old.remove();
    }
    status(this.progress);
  }

  fill({ row, seed, name, link, png }) {
    const place = this.places.get(`${row} ${seed}`);
    const blob = pngBlob(png);
    const src = URL.createObjectURL(blob);
    const { label } = place.dataset;
    place.firstChild.replaceWith(el("img", { src, alt: `${label}, seed ${seed}` }));
    const edit = el("button", { type: "button", title: "Edit it", "aria-label": `Edit seed ${seed}` }, icon("edit"));
    edit.onclick = () => {
      openFace(png, URL.createObjectURL(blob), `seed ${seed}`);
      byId("results").scrollIntoView();
    };
    const again = el("a", { href: `?${link}`, title: "Copy the link that repeats it", "aria-label": `Copy the link of seed ${seed}` }, icon("link"));
    again.onclick = async (event) => {
      if (event.ctrlKey || event.metaKey || !navigator.clipboard) return; // opens it instead
      event.preventDefault();
      await navigator.clipboard.writeText(again.href);
      status("link copied");
    };
    const like = el("button", { type: "button", title: "More like this", "aria-label": `More like seed ${seed}` }, icon("like"));
    like.onclick = () => upload([new File([blob], `seed ${seed}`, { type: "image/png" })]);
    const save = el("a", { href: src, download: name, title: "Download, with its settings inside", "aria-label": `Download seed ${seed}` }, icon("save"));
    place.lastChild.append(save, ...(link ? [again] : []), like, edit);
    this.done += 1;
    byId("bar").value = this.done / this.total;
    status(this.progress);
  }

  download({ name, png }) {
    const href = URL.createObjectURL(pngBlob(png));
    return el("a", { class: "all", href, download: name }, icon("save"), "All on one sheet");
  }

  /** Take away the places that nothing will fill. */
  end() {
    for (const wait of this.article.querySelectorAll(".wait")) wait.parentNode.remove();
    if (this.done === 0) this.article.remove();
  }
}

// ---- the form

function follow(query) {
  setMode("new");
  fromQuery(query, own);
  showImages();
  showTogether(); // with the sentences of the link
  showSteps();
  if (EDITS.some((key) => query.has(key))) generate(query);
  else if (sentences().length || images.length) generate();
}

/** Show how many steps count when the field is empty. */
function showSteps() {
  byId("steps").placeholder = own.presets[byId("preset").value]?.num_steps ?? "";
}

byId("request").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
byId("request").addEventListener("input", ({ target }) => {
  if (target.id === "prompts" || target.id === "arrange") showTogether();
  else showNumbers();
  if (target.id === "preset") { byId("steps").value = ""; byId("request").dataset.solver = ""; showSteps(); }
});
for (const name of ["file", "face"]) {
  byId(name).addEventListener("change", async ({ target }) => { await upload([...target.files]); target.value = ""; });
}
byId("cancel").onclick = cancel;
byId("dice").onclick = () => {
  byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
};
document.querySelector(".examples").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || !own) return;
  event.preventDefault();
  follow(new URL(link.href).searchParams);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") cancel();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("request").requestSubmit();
});
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("over", over);
    if (name === "drop") upload([...event.dataTransfer.files]);
  });
}

try {
  own = await (await fetch("settings")).json();
  byId("preset").append(...Object.keys(own.presets).map((name) => el("option", {}, name)));
  byId("num").max = own.limits.images;
  byId("freedom").disabled = !own.has_prior;
  byId("source").textContent = `Network: ${own.source}.`;
  follow(new URLSearchParams(location.search));
} catch {
  fault(GONE);
}
