// Compiles docs/how-to/vue.md's component, renders it until it is live, prints it, and ends its scope. The process then
// ends by itself, because the composable has closed the mirror.
import { readFileSync, writeFileSync } from 'node:fs';
import { createSSRApp, effectScope } from 'vue';
import { compileScript, parse } from 'vue/compiler-sfc';
import { renderToString } from 'vue/server-renderer';

const { descriptor, errors } = parse(readFileSync('App.vue', 'utf8'));
if (errors.length) throw errors[0];
writeFileSync('App.js', compileScript(descriptor, { id: 'app', inlineTemplate: true }).content);
const { default: App } = await import(`${process.cwd()}/App.js`);

const scope = effectScope();
const render = scope.run(() => App.setup({}, { expose() {} }));
const shown = () => renderToString(createSSRApp({ render: () => render({}, []) }));
console.log((await shown()).includes('connecting'));
while (!(await shown()).includes('live')) await new Promise((resolve) => setTimeout(resolve, 20));
console.log(await shown());
scope.stop();
