// Parts on a page of their own, for tests/console/test_parts.py; what they tell goes to window.seen.
async (scene) => {
  const names = ["lib", ...["button", "bar", "table", "field", "notice", "code", "confirm"].map((name) => `parts/${name}`)];
  const modules = await Promise.all(names.map((name) => import(`./${name}.js`)));
  const { html, render, ask, Table, Field, TextInput, NumberInput, Select, Switch, StackBar, Progress, Failure, CodeBlock } =
    Object.assign({}, ...modules);
  const place = document.createElement("div");
  place.id = "place";
  document.querySelector(".view").append(place);
  window.seen = [];
  const told = (value) => seen.push(value);
  const options = [{ value: "a", label: "A" }, { value: "b", label: "B" }];
  const rows = [["b", 10], ["a", 9], ["c", null]].map(([name, size]) => ({ name, size }));
  const columns = [
    { key: "name", title: "Name", render: (row) => row.name, sort: (row) => row.name },
    { key: "size", title: "Size", align: "right", render: (row) => row.size, sort: (row) => row.size },
  ];
  const parts = [
    { kind: "weights", label: "Weights", bytes: 3e9 },
    { kind: "kv", label: "KV", bytes: 0 },
    { kind: "free", label: "Free", bytes: 1e9 },
  ];
  const scenes = {
    ask: () => void ask({ title: "Remove it?", text: "For good.", action: "Remove", danger: true }).then(told),
    table: () => html`
      <${Table} caption="Things" columns=${columns} rows=${rows} rowKey=${(row) => row.name}
        onSelect=${(row) => told(row.name)} selected="c" />`,
    fields: () => html`
      <${Field} label="Words" hint="Some." error="Not these."><${TextInput} onInput=${told} /><//>
      <${Field} label="Number"><${NumberInput} onChange=${told} /><//>
      <${Field} label="One of"><${Select} value="b" onChange=${told} options=${options} /><//>
      <${Switch} label="On" checked=${false} onChange=${told} />`,
    bars: () => html`
      <${StackBar} label="GPU 0" total=${4e9} parts=${parts} />
      <${Progress} label="Fetching" done=${5} />
      <${Failure} error=${{ message: "<i>no</i>", fix: "do this" }} />
      <${CodeBlock} label="Config" text="a = 1" />`,
  };
  const shown = scenes[scene]();
  if (shown) render(shown, place);
}
