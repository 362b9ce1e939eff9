// The request as the query string of a link: from the form, and into it. Its keys are flags of t2f.py.

const byId = (id) => document.getElementById(id);

/** Images of the request: { image: value of the link's key, name, thumbnail: a URL or "" }. */
export const images = [];

export const sentences = () =>
  byId("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);

/** Show a value that may lie between the steps of a slider, or beyond its ends. */
function setSlider(slider, value) {
  slider.min = Math.min(slider.min, value);
  slider.max = Math.max(slider.max, value);
  slider.dataset.step ??= slider.step;
  slider.step = "any"; // until it is moved, see below
  slider.value = value;
}

document.addEventListener("input", ({ target }) => {
  if (target.dataset?.step) target.step = target.dataset.step;
}, true);

/** Return the query of the form. */
export function toQuery() {
  const query = new URLSearchParams();
  for (const text of sentences()) query.append("prompt", text);
  for (const { image } of images) query.append("image", image);
  const how = arrangement();
  if (how === "mix") {
    const weights = [...document.querySelectorAll("#weights input")].map((slider) => slider.value);
    query.set("mix", weights.join());
  }
  if (how === "steps") query.set("interpolate", byId("interpolate").value);
  query.set("num", byId("num").value);
  return settingsQuery(query);
}

/** Add the settings of the form to a query. */
export function settingsQuery(query) {
  query.set("seed", byId("seed").value);
  if (!byId("freedom").disabled) query.set("freedom", byId("freedom").value);
  query.set("cfg_scale", Number(byId("guidance").value) === 1 ? "None" : byId("guidance").value);
  query.set("preset", byId("preset").value);
  if (byId("steps").value) query.set("num_steps", byId("steps").value);
  if (byId("negative").value.trim()) query.set("negative", byId("negative").value.trim());
  if (byId("request").dataset.solver) query.set("solver", byId("request").dataset.solver);
  return query;
}

/** Fill the form from a query; what it does not name gets the network's own setting. */
export function fromQuery(query, own) {
  const weights = query.get("mix")?.split(",") ?? [];
  const sources = [...query].filter(([key]) => key === "prompt" || key === "image");
  const weighed = sources.map(([key, value], i) => ({ key, value, weight: weights[i] }));
  const prompts = weighed.filter(({ key }) => key === "prompt");
  const uploads = weighed.filter(({ key }) => key === "image");
  byId("prompts").value = prompts.map(({ value }) => value).join("\n");
  const known = new Map(images.map((image) => [image.image, image]));
  images.splice(0, images.length, ...uploads.map(({ value }) => known.get(value) ?? {
    image: value, name: value.slice(0, value.lastIndexOf(":")), thumbnail: "",
  }));
  byId("arrange").value =
    query.has("mix") ? "mix" : query.has("interpolate") ? "steps" : "each";
  byId("interpolate").value = query.get("interpolate") ?? 6;
  byId("negative").value = query.get("negative") ?? "";
  byId("num").value = query.get("num") ?? 4;
  byId("seed").value = query.get("seed") ?? 0;
  byId("preset").value = query.get("preset") ?? own.preset;
  // A network may be made for other steps than its preset's.
  const steps = query.has("preset") || own.num_steps === own.presets[own.preset].num_steps
    ? "" : own.num_steps;
  byId("steps").value = query.get("num_steps") ?? steps;
  byId("request").dataset.solver = query.get("solver") ?? "";
  const scale = query.get("cfg_scale") ?? own.cfg_scale ?? "None";
  setSlider(byId("guidance"), scale === "None" ? 1 : scale);
  const freedom = Number(query.get("freedom") ?? own.freedom);
  setSlider(byId("freedom"), Number.isNaN(freedom) ? own.freedom : freedom); // auto is no place of it
  showTogether([...prompts, ...uploads].map(({ weight }) => weight));
}

/** Return how several sources are arranged: each, mix, or steps from the first to the second. */
function arrangement() {
  const count = sentences().length + images.length;
  const how = byId("arrange").value;
  return count < 2 || (how === "steps" && count > 2) ? "each" : how;
}

/** Show the controls for several sources if there are several; keep the weights as they are. */
export function showTogether(weights) {
  const labels = [...sentences(), ...images.map(({ name }) => name)];
  byId("together").hidden = labels.length < 2;
  byId("arrange").options[2].disabled = labels.length !== 2;
  const how = arrangement();
  byId("between").hidden = byId("interpolate").disabled = how !== "steps";
  byId("of-each").textContent = labels.length > 1 && how !== "mix" ? "of each" : "";
  const box = byId("weights");
  box.hidden = how !== "mix";
  const before = [...box.querySelectorAll("input")].map((slider) => slider.value);
  box.replaceChildren(...labels.map((label, i) => {
    const row = Object.assign(document.createElement("div"), { className: "dial" });
    row.innerHTML = `<label></label><span class="says"></span>
      <input type="range" min="0" max="1" step="0.05" value="0.5">`;
    const [name, says, slider] = row.children;
    slider.id = name.htmlFor = `weight-${i}`;
    name.textContent = label;
    const value = weights?.[i] ?? before[i];
    if (value) setSlider(slider, value);
    return row;
  }));
  showNumbers();
}

/** Write the value of a slider beside it, and for those who hear the page. */
function say(slider, text) {
  slider.parentNode.querySelector(".says").textContent = text;
  slider.setAttribute("aria-valuetext", text);
}

/** Write the value of each slider. */
export function showNumbers() {
  const sliders = [...document.querySelectorAll("#weights input")];
  const total = sliders.reduce((sum, { value }) => sum + Number(value), 0);
  for (const slider of sliders) {
    const percent = total > 0 ? Math.round((100 * slider.value) / total) : 0;
    say(slider, `${percent} %`);
  }
  const freedom = byId("freedom");
  const free = Number(freedom.value);
  const word = free === 0 ? "literal" : free < 0.6 ? "mostly literal" : free <= 1 ? "open" : "free";
  say(freedom, freedom.disabled ? "literal: this network has no prior" : `${word}, ${Number(free.toFixed(3))}`);
  const scale = Number(byId("guidance").value);
  say(byId("guidance"), scale === 1 ? "none" : String(Number(scale.toFixed(3))));
}
