"use strict";
const main = document.getElementById("main"), drop = document.getElementById("drop"), input = document.getElementById("photos");
const answers = document.getElementById("answers"), status_line = document.getElementById("status");
const AT_ONCE = 3, NAMED = 5;
const waiting = [];
let working = 0, total = 0, done = 0, failed = 0;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function add(files) {
  for (const file of files) {
    const item = element("li"), figure = element("figure"), picture = element("img"), caption = element("figcaption", "", "");
    picture.src = URL.createObjectURL(file);
    picture.alt = file.name;
    picture.onload = picture.onerror = () => URL.revokeObjectURL(picture.src);
    caption.append(element("p", "muted", "…"), element("bdi", "path", file.name));
    figure.append(picture, caption);
    item.append(figure);
    item.setAttribute("aria-busy", "true");
    answers.append(item);
    waiting.push({ file, item, caption });
    total += 1;
  }
  work();
}

function work() {
  tell();
  while (working < AT_ONCE && waiting.length) {
    const { file, item, caption } = waiting.shift();
    working += 1;
    ask(file).then(answer => show(caption, answer), error => { failed += 1; refuse(caption, error.message); }).finally(() => {
      item.removeAttribute("aria-busy");
      working -= 1;
      done += 1;
      work();
    });
  }
}

function tell() {
  if (!total) return;
  const troubles = failed ? `, ${failed} could not be named` : "";
  status_line.textContent = done < total ? `${done} of ${total} photos …` : `${total} ${total === 1 ? "photo" : "photos"}${troubles}.`;
}

async function ask(file) {
  const most = Number(main.dataset.mostBytes);
  if (file.size > most) throw new Error(`larger than ${Math.floor(most / 1e6)} MB`);
  const body = JSON.stringify({ instances: [{ image_bytes: { b64: await base64(file) } }] });
  for (let attempt = 1; ; attempt += 1) {
    const response = await fetch(main.dataset.path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (response.status === 503 && attempt < 30) {
      await new Promise(resolve => setTimeout(resolve, 1000 * Number(response.headers.get("Retry-After") || 1)));
      continue;
    }
    const said = await response.json();
    if (!response.ok) throw new Error(said.error.replace(/^instances\[0\]: /, ""));
    document.getElementById("version").textContent = response.headers.get("Model-Version");
    return said.predictions[0];
  }
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("the browser cannot read it"));
    reader.readAsDataURL(file);
  });
}

function show(caption, answer) {
  const ranked = answer.classes.map((label, place) => [label, answer.scores[place]]).sort((one, other) => other[1] - one[1]);
  const list = element("div");
  for (const [label, score] of ranked.slice(0, NAMED)) {
    const guess = element("span", "guess"), percent = (100 * score).toFixed(1) + "\u202f%", bar = element("span", "share");
    guess.append(element("bdi", "", label), element("span", "", percent));
    bar.style.setProperty("--s", `${(100 * score).toFixed(1)}%`);
    bar.setAttribute("aria-hidden", "true");
    list.append(guess, bar);
  }
  caption.firstChild.replaceWith(list);
}

function refuse(caption, reason) {
  caption.firstChild.replaceWith(element("p", "error", reason));
}

input.addEventListener("change", () => { add(input.files); input.value = ""; });
document.addEventListener("paste", event => add(event.clipboardData.files));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, event => { event.preventDefault(); drop.classList.add("wanted"); });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, event => { event.preventDefault(); drop.classList.remove("wanted"); });
}
document.addEventListener("drop", event => add([...event.dataTransfer.files]));
