// The bench: a face that is edited step by step, the brush that paints over a part of it, and undo.

import { settingsQuery } from "./query.js";

const byId = (id) => document.getElementById(id);
const WORDS = { add: "add", remove: "remove", from: "before", to: "after", prompt: "sentence" }; // key: field
const SENTENCE_STRENGTH = 0.6; // where a sentence replaces the whole face, as long as no one sets another

/** Steps of the face: { png, src, label, mask: what was painted for it, an ImageData or null }. */
const steps = [];
let painted = false;

export const isEditing = () => byId("request").dataset.mode === "edit";

/** Show the form for new faces, "new", or that for editing one, "edit". */
export function setMode(mode) {
  byId("request").dataset.mode = mode;
  byId("num").disabled = mode === "edit";
  byId("bench").hidden = mode !== "edit";
  byId("generate").textContent = mode === "edit" ? "Edit" : "Generate";
  for (const tab of document.querySelectorAll("#modes button")) {
    tab.setAttribute("aria-pressed", tab.value === mode);
  }
}

/** Begin with another face. png: base64 of a PNG; src: its address. */
export function openFace(png, src, name) {
  for (const step of steps) URL.revokeObjectURL(step.src);
  steps.splice(0, steps.length, { png, src, label: name, mask: null });
  setMode("edit");
  clearPaint();
  showSteps();
}

/** Return the query of the edit. */
export function editQuery() {
  const query = new URLSearchParams();
  for (const [key, field] of Object.entries(WORDS)) {
    const text = byId(field).value.trim();
    if (text) query.append(key, text);
  }
  if (painted) query.set("mask", mask());
  if (Number(byId("strength").value) !== 1) query.set("strength", byId("strength").value);
  if (Number(byId("amount").value) !== 1) query.set("amount", byId("amount").value);
  if (byId("fresh").dataset.set) query.set("fresh", byId("fresh").value);
  if (steps.length) query.set("face", `${steps[0].label}:${steps.at(-1).png}`);
  settingsQuery(query);
  query.set("num", 1);
  return query;
}

/** One edit that is made; it takes messages as a generation does. */
export class EditRun {
  constructor() {
    this.isWhole = false;
    this.mask = painted ? paint().getImageData(0, 0, byId("paint").width, byId("paint").height) : null;
    byId("bench").classList.add("busy");
  }

  get progress() {
    return this.isWhole ? "edited" : "editing";
  }

  take({ before, rows, image }) {
    if (before !== undefined) byId("status").textContent = `queued, ${before} before you`;
    if (rows) {
      this.label = rows[0];
      byId("status").textContent = "editing";
    }
    if (image) {
      const bytes = atob(image.png.replaceAll("-", "+").replaceAll("_", "/"));
      const blob = new Blob([Uint8Array.from(bytes, (c) => c.charCodeAt(0))], { type: "image/png" });
      steps.push({ png: image.png, src: URL.createObjectURL(blob), label: this.label, mask: this.mask });
      this.isWhole = true;
      clearPaint();
      showSteps();
    }
  }

  end() {
    byId("bench").classList.remove("busy");
  }
}

/** Take back all steps after one; what was painted for the first of them is painted again. */
function backTo(place) {
  const [first] = steps.splice(place + 1);
  clearPaint();
  if (first?.mask) {
    paint().putImageData(first.mask, 0, 0);
    painted = true;
    showStrength();
  }
  showSteps();
  byId("status").textContent = "";
}

function showSteps() {
  const now = steps.at(-1);
  const before = steps.at(-2);
  byId("bench").classList.toggle("open", Boolean(now));
  byId("before-face").hidden = !before;
  if (before) byId("before-image").src = before.src;
  if (now) {
    byId("now-image").src = now.src;
    byId("now-image").alt = now.label;
    byId("now-label").textContent = before ? now.label.replace(`${steps[0].label} `, "") : now.label;
    byId("keep").href = now.src;
    byId("keep").download = "edited.png";
  }
  byId("keep").hidden = byId("undo").hidden = !before;
  byId("face-name").textContent = steps[0]?.label ?? "";
  byId("steps-taken").replaceChildren(...(before ? steps : []).map((step, i) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "quiet", title: step.label });
    button.setAttribute("aria-label", i ? `Back to step ${i}` : "Back to the first face");
    button.setAttribute("aria-current", String(step === now));
    button.append(Object.assign(new Image(), { src: step.src, alt: "" }));
    button.onclick = () => backTo(i);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

// ---- the brush

const paint = () => byId("paint").getContext("2d", { willReadFrequently: true });

function clearPaint() {
  painted = false;
  paint().clearRect(0, 0, byId("paint").width, byId("paint").height);
  showStrength();
}

/** Return what is painted as a PNG in base64: white on black, a pixel for each of the face. */
function mask() {
  const { width, height } = byId("paint");
  const whole = Object.assign(document.createElement("canvas"), { width, height });
  const pen = whole.getContext("2d");
  pen.fillRect(0, 0, width, height);
  pen.drawImage(byId("paint"), 0, 0);
  return whole.toDataURL("image/png").split(",")[1];
}

/** A canvas has the size of the face, whatever size the page shows it in. */
byId("now-image").addEventListener("load", ({ target }) => {
  const canvas = byId("paint");
  if (canvas.width === target.naturalWidth && canvas.height === target.naturalHeight) return;
  canvas.width = target.naturalWidth; // this clears it
  canvas.height = target.naturalHeight;
});

let last = null; // point of the stroke
function stroke(event) {
  const canvas = byId("paint");
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  const point = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  const pen = paint();
  pen.strokeStyle = "white";
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = (byId("brush").value / 100) * canvas.width;
  pen.globalCompositeOperation = byId("erase").checked ? "destination-out" : "source-over";
  pen.beginPath();
  pen.moveTo(...(last ?? point));
  pen.lineTo(...point);
  pen.stroke();
  last = point;
}

byId("paint").addEventListener("pointerdown", (event) => {
  byId("paint").setPointerCapture(event.pointerId);
  stroke(event);
});
byId("paint").addEventListener("pointermove", (event) => { if (last) stroke(event); });
for (const name of ["pointerup", "pointercancel"]) {
  byId("paint").addEventListener(name, () => {
    last = null;
    const { data } = paint().getImageData(0, 0, byId("paint").width, byId("paint").height);
    painted = data.some((value, i) => i % 4 === 3 && value > 0);
    showStrength();
  });
}
byId("unpaint").onclick = clearPaint;
byId("undo").onclick = () => backTo(steps.length - 2);

// ---- the dials

/** Set the strength that fits, as long as no one has moved the dial. */
function showStrength() {
  const dial = byId("strength");
  if (!dial.dataset.set) {
    dial.value = byId("sentence").value.trim() && !painted ? SENTENCE_STRENGTH : 1;
  }
  const number = Number(dial.value);
  const word = number === 0 ? "nothing changes" : number < 0.5 ? "near the face" : number < 1 ? "free" : "whole";
  say(dial, `${word}, ${number}`);
  say(byId("amount"), `${Number(byId("amount").value)}`);
  say(byId("fresh"), byId("fresh").dataset.set ? `${Number(byId("fresh").value)}` : "by itself");
}

function say(dial, text) {
  dial.parentNode.querySelector(".says").textContent = text;
  dial.setAttribute("aria-valuetext", text);
}

byId("request").addEventListener("input", ({ target }) => {
  if (target.id === "strength" || target.id === "fresh") target.dataset.set = "yes";
  showStrength();
});
for (const tab of document.querySelectorAll("#modes button")) {
  tab.onclick = () => setMode(tab.value);
}
showStrength();
