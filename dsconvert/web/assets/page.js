// Runs the generators of page.json in the browser, by onnxruntime-web.

import { RandomState, between } from "./numbers.js";

const SAMPLES = 8;
const NOISE = 0x9e3779b9;
const TIMES = 15;
const element = (id) => document.getElementById(id);
let ort = null;

// One file of the runtime: a hash that differs is an error of the browser's.
async function runtimeFile(runtime, name) {
  const options = { integrity: runtime.integrity[name] };
  const answer = await fetch(new URL(runtime.base + name, document.baseURI), options);
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

async function loadRuntime(runtime, way) {
  const files = runtime.ways[way];
  const script = await runtimeFile(runtime, files.module);
  const binary = await runtimeFile(runtime, files.binary);
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const module = await import(url);
  const found = module.default && module.default.InferenceSession ? module.default : module;
  found.env.wasm.wasmBinary = binary;
  // More threads need headers that a plain static server does not send.
  found.env.wasm.numThreads = 1;
  found.env.logLevel = "error";
  return found;
}

async function chosenWay(models) {
  const asked = new URLSearchParams(location.search).get("run");
  if (asked === "wasm" || asked === "webgpu") return asked;
  // Quantised operators are made for the CPU.
  if (!navigator.gpu || models.some((m) => m.dtype === "int8")) return "wasm";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return adapter ? "webgpu" : "wasm";
}

class Model {
  constructor(facts, session) {
    const { image, ...rest } = facts;
    Object.assign(this, rest, { session, times: [], values: image.values });
    [this.channels, this.height, this.width] = image.shape;
  }

  // Latents by seed, input after input from one generator, as Python draws them.
  latents(seed) {
    const numbers = new RandomState(seed);
    const found = {};
    for (const input of this.inputs) {
      if (input.kind === "latent") found[input.name] = numbers.normals(size(input), input.reach);
    }
    return found;
  }

  async image(latents, label, noiseSeed) {
    const feeds = {};
    for (const input of this.inputs) {
      let data = latents[input.name];
      if (input.kind === "noise") {
        data = new RandomState((noiseSeed ^ NOISE) >>> 0).normals(size(input));
      } else if (input.kind === "class") {
        data = new Float32Array(size(input));
        data[label] = 1;
      } else if (input.kind === "table") {
        data = Float32Array.from(input.values.slice(label * size(input), (label + 1) * size(input)));
      } else if (input.kind === "constant") {
        data = Float32Array.from(input.values);
      }
      feeds[input.name] = new ort.Tensor("float32", data, [1, ...input.shape]);
    }
    const began = performance.now();
    const result = await this.session.run(feeds);
    const output = result[this.session.outputNames[0]];
    const data = output.getData ? await output.getData() : output.data;
    this.times.push(performance.now() - began);
    if (this.times.length > TIMES) this.times.shift();
    return this.pixels(data);
  }

  // 8-bit levels as Python writes them: x * 127.5 + 128, rounded down.
  pixels(data) {
    const plane = this.width * this.height;
    const made = new Uint8ClampedArray(plane * 4);
    const level = (value) => {
      const x = this.values === "unit" ? value * 2 - 1 : value;
      return Math.min(255, Math.floor(Math.max(-1, Math.min(1, x)) * 127.5 + 128));
    };
    for (let i = 0; i < plane; i += 1) {
      for (let c = 0; c < 3; c += 1) {
        made[4 * i + c] = level(data[(this.channels < 3 ? 0 : c) * plane + i]);
      }
      made[4 * i + 3] = this.channels === 4 ? level(data[3 * plane + i]) : 255;
    }
    return new ImageData(made, this.width, this.height);
  }

  median() {
    const sorted = [...this.times].sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : NaN;
  }
}

function size(input) {
  return input.shape.reduce((a, b) => a * b, 1);
}

// The number of classes that an input tells apart; 0 for other inputs.
function classesOf(input) {
  if (input.kind === "table") return input.values.length / size(input);
  return input.kind === "class" ? size(input) : 0;
}

function canvasFor(model) {
  const canvas = document.createElement("canvas");
  canvas.width = model.width;
  canvas.height = model.height;
  return canvas;
}

const paint = (canvas, image) => canvas.getContext("2d").putImageData(image, 0, 0);

// The largest difference in levels between the image of seed 0 here and the one that Python made.
async function check(model) {
  const made = await model.image(model.latents(0), 0, 0);
  const picture = new Image();
  picture.src = model.check;
  await picture.decode();
  const canvas = canvasFor(model);
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.drawImage(picture, 0, 0);
  const wanted = context.getImageData(0, 0, model.width, model.height).data;
  let worst = 0;
  for (let i = 0; i < wanted.length; i += 1) {
    // Colours behind transparency are not stored exactly in a canvas.
    if (wanted[i | 3] < 255 && (i & 3) !== 3) continue;
    worst = Math.max(worst, Math.abs(wanted[i] - made.data[i]));
  }
  return worst;
}

class Page {
  constructor(models) {
    this.models = models;
    this.rows = [];
    this.point = { x: 0.5, y: 0.5 };
    this.label = 0;
    this.running = false;
    this.stale = false;
    this.round = 0;
    const state = new URLSearchParams(location.hash.slice(1));
    const share = (name) => Math.max(0, Math.min(1, Number(state.get(name) ?? 0.5) || 0));
    this.point = { x: share("x"), y: share("y") };
    element("seed").value = String(Math.max(0, Math.floor(Number(state.get("seed")) || 0)));
    this.build(Math.floor(Number(state.get("class")) || 0));
  }

  build(label) {
    for (const model of this.models) {
      const row = document.createElement("div");
      row.className = "row";
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = model.name;
      const canvases = Array.from({ length: SAMPLES }, () => canvasFor(model));
      row.append(name, ...canvases);
      element("samples").append(row);
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = model.name;
      const mixed = canvasFor(model);
      figure.append(mixed, caption);
      element("mixed").append(figure);
      this.rows.push({ canvases, mixed, caption });
    }
    const classes = Math.max(0, ...this.models[0].inputs.map(classesOf));
    if (classes) {
      element("class-label").hidden = false;
      for (let i = 0; i < classes; i += 1) element("class").append(new Option(String(i), i));
      this.label = Math.min(Math.max(0, label), classes - 1);
      element("class").value = String(this.label);
      element("class").addEventListener("change", () => this.changed());
    }
    element("seed").addEventListener("change", () => this.changed());
    element("earlier").addEventListener("click", () => this.step(-SAMPLES));
    element("later").addEventListener("click", () => this.step(SAMPLES));
    const pad = element("pad");
    const move = (event) => {
      const box = pad.getBoundingClientRect();
      this.moveTo((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    pad.addEventListener("pointerdown", (event) => {
      pad.setPointerCapture(event.pointerId);
      move(event);
    });
    pad.addEventListener("pointermove", (event) => {
      if (pad.hasPointerCapture(event.pointerId)) move(event);
    });
    pad.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (!(event.key in by)) return;
      event.preventDefault();
      const [x, y] = by[event.key];
      this.moveTo(this.point.x + 0.05 * x, this.point.y + 0.05 * y);
    });
  }

  get seed() {
    const value = Math.floor(Number(element("seed").value)) || 0;
    return Math.max(0, Math.min(4294967295 - SAMPLES, value));
  }

  step(by) {
    element("seed").value = String(Math.max(0, this.seed + by));
    this.changed();
  }

  changed() {
    this.label = Number(element("class").value) || 0;
    this.keep();
    return Promise.all([this.samples(), this.mix()]);
  }

  moveTo(x, y) {
    this.point = { x: Math.max(0, Math.min(1, x)), y: Math.max(0, Math.min(1, y)) };
    this.keep();
    this.mix();
  }

  keep() {
    const { x, y } = this.point;
    const state = `seed=${this.seed}&x=${x.toFixed(3)}&y=${y.toFixed(3)}&class=${this.label}`;
    history.replaceState(null, "", `#${state}`);
  }

  // The grid; a newer one stops an older one.
  async samples() {
    this.round += 1;
    const { round, seed } = this;
    for (let i = 0; i < SAMPLES; i += 1) {
      for (const [m, model] of this.models.entries()) {
        const image = await turn(() => model.image(model.latents(seed + i), this.label, seed + i));
        if (round !== this.round) return;
        const canvas = this.rows[m].canvases[i];
        paint(canvas, image);
        canvas.title = `seed ${seed + i}`;
      }
    }
    this.costs();
  }

  // The image at the point; while one is computed, only the newest position waits.
  async mix() {
    element("point").style.left = `${100 * this.point.x}%`;
    element("point").style.top = `${100 * this.point.y}%`;
    document.querySelectorAll(".corner").forEach((corner, i) => {
      corner.textContent = `seed ${this.seed + i}`;
    });
    this.stale = true;
    if (this.running) return;
    this.running = true;
    try {
      while (this.stale) {
        this.stale = false;
        for (const [m, model] of this.models.entries()) {
          const image = await turn(() => this.mixed(model));
          paint(this.rows[m].mixed, image);
          this.rows[m].caption.textContent = `${model.name}: ${milliseconds(model.times.at(-1))}`;
          if (this.stale) break;
        }
        this.costs();
      }
    } finally {
      this.running = false;
    }
  }

  mixed(model) {
    const corners = [0, 1, 2, 3].map((i) => model.latents(this.seed + i));
    const { x, y } = this.point;
    const latents = {};
    for (const name of Object.keys(corners[0])) {
      const [a, b, c, d] = corners.map((corner) => corner[name]);
      latents[name] = between(between(a, b, x), between(c, d, x), y);
    }
    return model.image(latents, this.label, this.seed);
  }

  costs() {
    element("costs").replaceChildren(
      ...this.models.map((model) => {
        const row = document.createElement("tr");
        const cells = [
          model.name,
          `${(model.bytes / 1e6).toFixed(1)} MB, ${model.dtype}`,
          count(model.parameters),
          model.macs === null ? "–" : count(model.macs),
          milliseconds(model.median()),
          `at most ${model.difference} of 255 levels apart`,
        ];
        row.append(
          ...cells.map((text) => {
            const cell = document.createElement("td");
            cell.textContent = text;
            return cell;
          }),
        );
        return row;
      }),
    );
  }
}

function count(value) {
  if (value >= 1e9) return `${(value / 1e9).toFixed(2)} G`;
  return value >= 1e6 ? `${(value / 1e6).toFixed(2)} M` : `${(value / 1e3).toFixed(1)} K`;
}

const milliseconds = (value) => `${value.toFixed(value < 100 ? 1 : 0)} ms`;

// A session runs one image at a time.
let last = Promise.resolve();
function turn(work) {
  const next = last.then(work);
  last = next.catch(() => {});
  return next;
}

async function open(facts) {
  const sessionsOf = async (way) => {
    ort = await loadRuntime(facts.runtime, way);
    const providers = way === "webgpu" ? ["webgpu", "wasm"] : ["wasm"];
    const made = [];
    for (const model of facts.models) {
      element("status").textContent = `Loading ${model.name}…`;
      const answer = await fetch(model.file);
      if (!answer.ok) throw new Error(`${model.file}: ${answer.status} ${answer.statusText}`);
      const options = { executionProviders: providers, graphOptimizationLevel: "all" };
      const graph = new Uint8Array(await answer.arrayBuffer());
      made.push(new Model(model, await ort.InferenceSession.create(graph, options)));
    }
    return made;
  };
  const way = await chosenWay(facts.models);
  try {
    return [way, await sessionsOf(way)];
  } catch (error) {
    if (way === "wasm") throw error;
    return ["wasm", await sessionsOf("wasm")];
  }
}

async function start() {
  const facts = await (await fetch("page.json")).json();
  element("title").textContent = document.title = facts.title;
  element("maker").textContent = `dsconvert ${facts.dsconvert}`;
  const [way, models] = await open(facts);
  for (const model of models) model.difference = await check(model);
  const page = new Page(models);
  window.dsconvertPage = page;
  await page.changed();
  const [runs, where] = way === "webgpu" ? ["WebGPU", "the graphics card"] : ["WASM", "one thread"];
  element("status").textContent = `Ready: ${runs} (${where}).`;
  element("notes").textContent =
    "A seed draws the latents that NumPy's RandomState of that seed draws. Times are of this " +
    "browser on this machine, one image a call.";
  document.body.dataset.differences = models.map((m) => m.difference).join(" ");
  document.body.dataset.way = way;
  document.body.dataset.state = "ready";
}

start().catch((error) => {
  document.body.dataset.state = "failed";
  element("status").textContent =
    location.protocol === "file:"
      ? "A browser opens this page from a server only: python -m http.server in its folder."
      : `The generator can't be run here: ${error.message || error}.`;
});
