"use strict";
const at = (id) => document.getElementById(id);

async function call(method, path, form) {
  const answer = await fetch(path, { method, body: form && new URLSearchParams(form) });
  const data = await answer.json();
  at("who").textContent = `served by ${answer.headers.get("X-Server")} and ${data.server}`;
  if (!answer.ok) throw new Error(data.error);
  return data;
}

async function show() {
  const { notes } = await call("GET", "/app/notes");
  at("notes").replaceChildren(...notes.map((note) => {
    const item = document.createElement("li");
    item.textContent = note.body;
    return item;
  }));
}

function guarded(action) {
  return async (event) => {
    event.preventDefault();
    try {
      await action();
    } catch (error) {
      at("state").textContent = error.message;
    }
  };
}

at("login").addEventListener("submit", guarded(async () => {
  const { user } = await call("POST", "/app/login", { user: at("user").value, password: at("password").value });
  at("login").hidden = true;
  at("write").hidden = false;
  at("state").textContent = `logged in as ${user}`;
  await show();
}));

at("write").addEventListener("submit", guarded(async () => {
  await call("POST", "/app/notes", { body: at("body").value });
  at("state").textContent = "written";
  await show();
}));
