// Several gateways of one etcd: a function like fetch() that asks another one for each connection. A cursor of one
// gateway continues at every other.
const PATH = '/v1/watch?'; // what follows it is percent-encoded, so it stands in an address once

export function anyOf(urls, fetch = globalThis.fetch) {
  const gateways = urls.map((url) => {
    const { origin, pathname } = new URL(url, globalThis.location?.href);
    return origin + pathname.replace(/\/*$/, '');
  });
  let at = Math.floor(Math.random() * gateways.length); // so that many clients spread
  return (address, init) => {
    const gateway = gateways[at++ % gateways.length];
    return fetch(gateway + address.slice(address.lastIndexOf(PATH)), init);
  };
}
