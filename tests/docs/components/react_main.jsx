// Renders docs/how-to/react.md's component until it is live, prints it, and unmounts it. Then the hook has closed the mirror:
// no connection is left. (React's scheduler has a port that would keep the process alive.)
import { createElement } from 'react';
import { act, create } from 'react-test-renderer';
import App from './App.jsx';

globalThis.IS_REACT_ACT_ENVIRONMENT = true;

async function main() {
  let root;
  await act(async () => { root = create(createElement(App)); });
  const shown = () => JSON.stringify(root.toJSON());
  console.log(shown().includes('connecting'));
  while (!shown().includes('live')) await act(() => new Promise((resolve) => setTimeout(resolve, 20)));
  console.log(shown());
  await act(async () => root.unmount());
  while (process.getActiveResourcesInfo().includes('TCPSocketWrap')) await new Promise((resolve) => setTimeout(resolve, 20));
  process.exit();
}
main();
