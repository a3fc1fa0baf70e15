// The picture that is clicked on, and the keys and files of the whole page. Runs once, with `element` and `trigger`.

const stage = () => element.querySelector(".stage[data-live='1']");
const meaning = () => element.querySelector("input[name='click-means']:checked")?.value ?? "1";
const clamp = (share) => Math.min(1, Math.max(0, share));
let cross = null; // where the keyboard's cross is, in shares of the picture
let corner = null; // the first corner of a box that is being made
let drag = null;

const shares = (event) => {
  const area = stage().getBoundingClientRect();
  return { x: clamp((event.clientX - area.left) / area.width), y: clamp((event.clientY - area.top) / area.height) };
};
const mark = (at, label) => trigger("mark", { ...at, label });
const box = (a, b) =>
  trigger("mark", {
    x: Math.min(a.x, b.x),
    y: Math.min(a.y, b.y),
    right: Math.max(a.x, b.x),
    bottom: Math.max(a.y, b.y),
  });

// What is under way is drawn by style alone: the markup belongs to the server.
const set = (name, value) => element.style.setProperty(name, value);
const showCross = () => {
  element.classList.toggle("crossed", cross !== null);
  if (cross) {
    set("--cross-x", cross.x * 100 + "%");
    set("--cross-y", cross.y * 100 + "%");
  }
};
const showBox = (a, b) => {
  element.classList.toggle("boxing", a !== null);
  if (a) {
    set("--box-x", Math.min(a.x, b.x) * 100 + "%");
    set("--box-y", Math.min(a.y, b.y) * 100 + "%");
    set("--box-w", Math.abs(a.x - b.x) * 100 + "%");
    set("--box-h", Math.abs(a.y - b.y) * 100 + "%");
  }
};

// A click, or the second of two that make a box.
const act = (at, opposite) => {
  if (meaning() === "box" && !opposite) {
    if (corner) {
      box(corner, at);
      corner = null;
      showBox(null);
    } else {
      corner = at;
      showBox(at, at);
    }
  } else {
    const label = meaning() === "0" ? 0 : 1;
    mark(at, opposite ? 0 : label);
  }
};

element.addEventListener("pointerdown", (event) => {
  if (!stage()?.contains(event.target) || event.button !== 0) return;
  // A finger that moves scrolls the page, unless it is to draw a box.
  const draws = event.pointerType === "mouse" || meaning() === "box";
  drag = { start: shares(event), x: event.clientX, y: event.clientY, draws, moved: false };
});
window.addEventListener("pointermove", (event) => {
  if (!drag || !stage()) return;
  if (Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 6) drag.moved = true;
  if (drag.moved && drag.draws) showBox(drag.start, shares(event));
});
window.addEventListener("pointerup", (event) => {
  const ended = drag;
  drag = null;
  if (!ended || !stage()) return;
  if (ended.moved && ended.draws) {
    corner = null;
    showBox(null);
    box(ended.start, shares(event));
  } else if (!ended.moved) {
    act(ended.start, event.shiftKey);
  }
});
window.addEventListener("pointercancel", () => {
  drag = null;
  showBox(null);
});

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
element.addEventListener("keydown", (event) => {
  if (event.target !== stage()) return;
  if (event.key in STEPS) {
    const size = event.shiftKey ? 0.1 : 0.02;
    const [x, y] = STEPS[event.key];
    cross = cross ?? { x: 0.5, y: 0.5 };
    cross = { x: clamp(cross.x + x * size), y: clamp(cross.y + y * size) };
    if (corner) showBox(corner, cross);
  } else if (event.key === "Enter" || event.key === " ") {
    cross = cross ?? { x: 0.5, y: 0.5 };
    act({ ...cross }, event.shiftKey);
  } else if (event.key === "Backspace" || event.key === "Delete") {
    if (element.querySelector("[data-do='undo']:not(:disabled)")) trigger("undo");
  } else if (event.key === "Escape") {
    cross = corner = null;
    showBox(null);
  } else {
    return;
  }
  event.preventDefault();
  showCross();
});
element.addEventListener("focusout", () => {
  cross = null;
  showCross();
});
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button?.dataset.do === "undo") trigger("undo");
  if (button?.dataset.do === "clear") trigger("clear");
});
element.addEventListener("change", () => {
  corner = null;
  showBox(null);
  element.classList.toggle("draws", meaning() === "box");
});
watch("value", () => {
  corner = null;
  showBox(null);
  element.classList.toggle("draws", meaning() === "box");
});

// Pictures that are pasted or dropped go the way of those that are opened.
const input = () => document.querySelector("#controls input[type='file']");
const open = (files) => {
  const picture = [...(files ?? [])].find((file) => file.type.startsWith("image/")) ?? files?.[0];
  if (!picture || !input()) return false;
  const carrier = new DataTransfer();
  carrier.items.add(picture);
  input().files = carrier.files;
  input().dispatchEvent(new Event("change", { bubbles: true }));
  return true;
};
document.addEventListener(
  "click",
  (event) => {
    if (event.target.closest?.("#open-picture")) input().accept = "image/*";
  },
  true,
);
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length && open(event.clipboardData.files)) event.preventDefault();
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    if (event.dataTransfer?.types.includes("Files")) {
      event.preventDefault();
      element.classList.add("dropping");
    }
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) element.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  element.classList.remove("dropping");
  if (event.dataTransfer?.files.length) {
    event.preventDefault();
    open(event.dataTransfer.files);
  }
});

// Enter segments; on a touch screen, whose keyboard has no Shift+Enter, it begins a line.
const entered = (event) => event.key === "Enter" && !event.isComposing && event.target.closest?.("#expressions");
document.addEventListener(
  "keydown",
  (event) => {
    if (!entered(event)) return;
    const touch = window.matchMedia("(pointer: coarse)").matches;
    if (event.ctrlKey || event.metaKey || (!event.shiftKey && !touch)) {
      event.preventDefault();
      document.querySelector("#run")?.click();
    }
  },
  true,
);
// Gradio's text box would take Shift+Enter, which begins a line here.
document.addEventListener("keypress", (event) => entered(event) && event.stopPropagation(), true);

element.dataset.ready = "1";
