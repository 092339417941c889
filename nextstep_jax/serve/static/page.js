"use strict";
const $ = (id) => document.getElementById(id);
const SLIDERS = ["cfg", "image_cfg", "steps"];
let about = null, job = null, controller = null, last = null, more = {};

// --- requests ---------------------------------------------------------------------------------------------------------

async function call(path, options = {}) {
  options.headers = { ...options.headers };
  const token = sessionStorage.getItem("token");
  if (token) options.headers.authorization = "Bearer " + token;
  const reply = await fetch(path, options);
  if (reply.status === 401) {
    const given = window.prompt("Token of this server");
    if (given) { sessionStorage.setItem("token", given); return call(path, options); }
  }
  if (!reply.ok) throw new Error((await reply.json().catch(() => null))?.error?.message || reply.status + " " + reply.statusText);
  return reply;
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const data = text.slice(0, end).split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// --- drawing ----------------------------------------------------------------------------------------------------------

function say(text, error = false) { $("status").textContent = text; $("status").className = error ? "error" : ""; }

function newCanvas(h, w) {
  const side = about.token_pixels, figure = document.createElement("figure"), canvas = document.createElement("canvas");
  canvas.width = w * side; canvas.height = h * side;
  canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", "Image being drawn");
  const context = canvas.getContext("2d");
  context.fillStyle = "#808080"; context.fillRect(0, 0, canvas.width, canvas.height);
  const stack = document.createElement("div");
  stack.className = "stack"; stack.append(canvas); figure.append(stack); $("results").append(figure);
  return { stack, canvas, context, figure, w, done: 0 };
}

function paintTokens(drawing, first, rgb) {
  const bytes = bytesOf(rgb), half = about.token_pixels / 2;
  for (let k = 0; k * 12 < bytes.length; k++) {
    const x = ((first + k) % drawing.w) * 2 * half, y = Math.floor((first + k) / drawing.w) * 2 * half;
    for (let q = 0; q < 4; q++) {
      const [r, g, b] = bytes.slice(k * 12 + q * 3);
      drawing.context.fillStyle = `rgb(${r},${g},${b})`;
      drawing.context.fillRect(x + (q % 2) * half, y + (q >> 1) * half, half, half);
    }
  }
  drawing.done = first + bytes.length / 12;
}

async function paintImage(drawing, url, partial) {
  const image = new Image();
  image.src = url; await image.decode();
  const side = about.token_pixels, context = drawing.context;
  if (!partial) return context.drawImage(image, 0, 0);
  for (let k = 0; k < drawing.done; k++) {
    const x = (k % drawing.w) * side, y = Math.floor(k / drawing.w) * side;
    context.drawImage(image, x, y, side, side, x, y, side, side);
  }
}

async function complete(drawing, b64, record, id) {
  const url = "data:image/png;base64," + b64;
  await paintImage(drawing, url);
  drawing.canvas.setAttribute("aria-label", record.prompt); drawing.canvas.dataset.done = "true";
  const caption = document.createElement("figcaption"), link = document.createElement("a");
  link.href = url; link.download = `image-${record.seed}-${record.index}.png`; link.textContent = "Download";
  caption.append(`seed ${record.seed}, image ${record.index}. `, link); drawing.figure.append(caption);
  if (id) offerAttention(drawing, id);
  if (record.thinking) { $("thoughts").hidden = false; $("thought").textContent = record.thinking; }
  last = await (await fetchData(url)).blob;
  await remember(last, record);
}

function bytesOf(base64) { return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)); }

function fetchData(url) {
  const bytes = bytesOf(url.slice(url.indexOf(",") + 1));
  return { blob: new Blob([bytes], { type: "image/png" }) };
}

async function run(kind) {
  if (controller || !about) return;
  if (!$("form").reportValidity()) return;
  if (kind === "edit" && !last) return say("Draw or choose an image first", true);
  if (!$("lock").checked) $("seed").value = Math.floor(Math.random() * 2 ** 31);
  controller = new AbortController(); busy(true);
  if (matchMedia("(max-width: 720px)").matches) document.querySelector("section").scrollIntoView();
  $("results").replaceChildren(); $("thoughts").hidden = true; $("thought").textContent = "";
  let drawings = [], paragraph = null, failure = null, grid = null;
  try {
    const reply = await send(kind);
    for await (const event of events(reply)) {
      if (event.type === "nextstep.queued") {
        job = event.id; say(event.position > 1 ? `waiting, place ${event.position}` : "waiting");
        if (event.unfamiliar?.length) { const p = document.createElement("p"); p.textContent = event.unfamiliar.join("; "); $("results").append(p); }
      } else if (event.type === "nextstep.started") {
        say("drawing"); grid = event; paragraph = null;
        if (kind === "continue") drawings.push(newCanvas(event.h, event.w));
        else for (let j = 0; j < $("n").value; j++) drawings.push(newCanvas(event.h, event.w));
      } else if (event.type === "nextstep.thinking") {
        say("thinking"); $("thoughts").hidden = false; $("thought").textContent = event.text;
      } else if (event.type === "nextstep.token") {
        paintTokens(drawings[event.image], event.first, event.rgb);
        say("drawing"); $("progress").value = drawings[event.image].done / grid.tokens;
      } else if (event.type?.endsWith(".partial_image")) {
        await paintImage(drawings[event.index], "data:image/png;base64," + event.b64_json, true);
      } else if (event.type?.endsWith(".completed")) {
        await complete(drawings[event.index], event.b64_json, event.nextstep, event.nextstep_id);
      } else if (event.error) {
        failure = event.error;
      } else if (event.choices) {
        const content = event.choices[0].delta.content;
        if (typeof content === "string") {
          if (!paragraph) { paragraph = document.createElement("p"); $("results").append(paragraph); }
          paragraph.textContent += content;
        } else if (content) {
          const url = content[0].image_url.url;
          await complete(drawings.at(-1), url.slice(url.indexOf(",") + 1), content[0].nextstep);
        }
      }
    }
    if (failure) say(failure.message, failure.code !== "stopped"); else { say("done"); $("progress").value = 1; }
  } catch (error) {
    say(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  } finally { controller = job = null; busy(false); }
}

function send(kind) {
  const common = { prompt: $("prompt").value, seed: +$("seed").value, guidance_scale: +$("cfg").value, num_inference_steps: +$("steps").value, stream: true };
  const own = { ...more, thinking: $("thinking").checked, tokens: true };
  const ofEdit = { thinking: own.thinking || about.edit.thinking, tokens: true, image_cfg: +$("image_cfg").value };
  const size = `${$("width").value}x${$("height").value}`, signal = controller.signal;
  if (kind === "edit") {
    const form = new FormData();
    for (const [name, value] of Object.entries({ ...common, n: $("n").value })) form.append(name, value);
    for (const [name, value] of Object.entries(ofEdit)) form.append(`nextstep[${name}]`, value);
    form.append("image", last, "image");
    return call("/v1/images/edits", { method: "POST", body: form, signal });
  }
  let path = "/v1/images/generations", body = { ...common, n: +$("n").value, size, partial_images: 3, nextstep: own };
  if (kind === "continue") {
    path = "/v1/chat/completions";
    const { prompt, ...rest } = common;
    body = { ...rest, modalities: ["text", "image"], messages: [{ role: "user", content: prompt }], nextstep: own };
  }
  return call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });
}

// --- attention --------------------------------------------------------------------------------------------------------

function offerAttention(drawing, id) {
  const button = document.createElement("button");
  button.type = "button"; button.textContent = "Attention to words"; drawing.figure.append(button);
  button.onclick = async () => {
    button.disabled = true;
    const asked = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ image: id }) };
    try { showAttention(drawing, await (await call("/v1/nextstep/attention", asked)).json()); button.remove(); }
    catch (error) { say(error.message, true); button.disabled = false; }
  };
}

// A word pointed at: the image greys where little attention went to it. The image pointed at: its words are tinted.
function showAttention(drawing, { words, shown, weights }) {
  const levels = bytesOf(shown), raw = new Float32Array(bytesOf(weights).buffer), n = levels.length / words.length;
  const heat = document.createElement("canvas"), line = document.createElement("p"), note = document.createElement("small");
  heat.className = "heat"; heat.width = drawing.w; heat.height = n / drawing.w; heat.setAttribute("aria-hidden", "true");
  const context = heat.getContext("2d"), percent = (value) => `${(100 * value).toPrecision(2)} %`;
  const clear = () => { context.clearRect(0, 0, heat.width, heat.height); for (const word of line.children) word.style.removeProperty("--level"); };
  line.className = "words";
  words.forEach((text, i) => {
    const word = document.createElement("button");
    word.type = "button"; word.textContent = text;
    word.title = `at most ${percent(Math.max(...raw.subarray(i * n, i * n + n)))} of a token's attention`;
    word.onpointerenter = word.onfocus = () => {
      clear();
      for (let k = 0; k < n; k++) {
        context.fillStyle = `rgb(128 128 128 / ${0.9 * (1 - levels[i * n + k] / 255)})`;
        context.fillRect(k % heat.width, Math.floor(k / heat.width), 1, 1);
      }
    };
    word.onpointerleave = word.onblur = clear;
    line.append(word);
  });
  drawing.canvas.onpointermove = (event) => {
    const box = drawing.canvas.getBoundingClientRect(), at = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
    const k = at((event.clientY - box.top) / box.height, heat.height) * heat.width + at((event.clientX - box.left) / box.width, heat.width);
    [...line.children].forEach((word, i) => word.style.setProperty("--level", `${levels[i * n + k] * 60 / 255}%`));
    drawing.canvas.title = words.map((word, i) => `${word} ${percent(raw[i * n + k])}`).join(", ");
  };
  drawing.canvas.onpointerleave = clear;
  note.textContent = "Point at a word or at the image. Attention says where the model looked, not why it drew what it drew.";
  drawing.stack.append(heat); drawing.figure.append(line, note);
}

function busy(now) {
  for (const id of ["draw", "edit", "continue"]) $(id).disabled = now;
  $("stop").disabled = !now; if (now) $("progress").value = 0;
}

function stop() {
  if (job) call("/v1/nextstep/jobs/" + job, { method: "DELETE" }).catch(() => controller?.abort()); else controller?.abort();
}

// --- history ----------------------------------------------------------------------------------------------------------

const database = new Promise((resolve, reject) => {
  const request = indexedDB.open("nextstep_jax", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("images", { autoIncrement: true });
  request.onsuccess = () => resolve(request.result); request.onerror = () => reject(request.error);
});

async function store(action, mode = "readwrite") {
  const request = action((await database).transaction("images", mode).objectStore("images"));
  return new Promise((resolve, reject) => { request.onsuccess = () => resolve(request.result); request.onerror = () => reject(request.error); });
}

async function remember(blob, record) { await store((images) => images.add({ blob, record })); showInHistory({ blob, record }); }

function showInHistory({ blob, record }) {
  const button = document.createElement("button"), image = document.createElement("img");
  button.type = "button"; image.src = URL.createObjectURL(blob); image.alt = "";
  button.title = record.prompt; button.setAttribute("aria-label", "Restore: " + record.prompt);
  button.append(image); $("history").prepend(button);
  button.onclick = () => { last = blob; restore(record); show(blob); };
}

async function show(blob) {
  const url = URL.createObjectURL(blob), image = new Image();
  image.src = url; await image.decode();
  const side = about.token_pixels; $("results").replaceChildren();
  const drawing = newCanvas(image.height / side, image.width / side);
  drawing.context.drawImage(image, 0, 0); drawing.canvas.setAttribute("aria-label", "Chosen image"); URL.revokeObjectURL(url);
}

function restore(record) {
  const settings = typeof record.settings === "string" ? JSON.parse(record.settings) : record.settings || {};
  if (record.prompt !== undefined) $("prompt").value = record.prompt;
  for (const name of ["seed", "width", "height"]) if (record[name] !== undefined) $(name).value = record[name];
  setAll(settings); keepMore(settings); $("lock").checked = true; say("settings restored");
}

function setAll(settings) {
  for (const name of SLIDERS) if (settings[name] !== undefined) $(name).value = settings[name];
  if (settings.thinking !== undefined) $("thinking").checked = settings.thinking;
  showNumbers();
}

// What has no control of its own: kept from a restored image for the next drawing.
function keepMore(settings) {
  more = {};
  for (const name of ["schedule", "guidance_start", "guidance_end", "sampler", "shift", "final_steps", "noise_level", "normalize_tokens", "rescale", "prompt_suffix"])
    if (settings[name] !== undefined && about.generate[name] !== undefined) more[name] = settings[name];
}

function showNumbers() { for (const output of document.querySelectorAll("output")) output.value = $(output.htmlFor[0]).value; }

// --- files ------------------------------------------------------------------------------------------------------------

async function take(file) {
  if (!file) return;
  const bytes = new Uint8Array(await file.arrayBuffer());
  last = file;
  const record = readRecord(bytes);
  await show(file).catch(() => say("The browser cannot show this file; the server will say what is wrong with it", true));
  if (record.prompt !== undefined) restore(record); else if (!$("status").className) say("image chosen: Edit last changes it");
}

// The texts of a PNG: what `GeneratedImage.save` and this server write into it.
function readRecord(bytes) {
  const record = {}, view = new DataView(bytes.buffer), decode = (part) => new TextDecoder().decode(part);
  if (bytes.length < 8 || view.getUint32(0) !== 0x89504e47) return record;
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at), kind = decode(bytes.subarray(at + 4, at + 8)), data = bytes.subarray(at + 8, at + 8 + length);
    const zero = data.indexOf(0);
    if (kind === "iTXt" && zero > 0 && data[zero + 1] === 0) {
      const language = data.indexOf(0, zero + 3), keyword = data.indexOf(0, language + 1), text = decode(data.subarray(keyword + 1));
      try { record[decode(data.subarray(0, zero))] = JSON.parse(text); } catch { record[decode(data.subarray(0, zero))] = text; }
    }
    at += 12 + length;
  }
  return record;
}

// --- the page ---------------------------------------------------------------------------------------------------------

async function begin() {
  about = await (await call("/v1/nextstep/settings")).json();
  $("model").textContent = about.model;
  for (const id of ["width", "height"]) { $(id).step = $(id).min = about.token_pixels; $(id).value = about.generate.image_size; }
  setAll({ ...about.generate, image_cfg: about.edit.image_cfg });
  for (const entry of await store((images) => images.getAll(), "readonly")) showInHistory(entry);
}

$("form").onsubmit = (event) => { event.preventDefault(); run("draw"); };
$("edit").onclick = () => run("edit");
$("continue").onclick = () => run("continue");
$("stop").onclick = stop;
$("dice").onclick = () => { $("seed").value = Math.floor(Math.random() * 2 ** 31); };
$("forget").onclick = async () => { await store((images) => images.clear()); $("history").replaceChildren(); };
$("upload").onchange = (event) => take(event.target.files[0]);
for (const name of SLIDERS) $(name).oninput = showNumbers;
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run("draw"); }
  if (event.key === "Escape") stop();
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => take(event.clipboardData.files[0]));
begin().catch((error) => say(error.message, true));
