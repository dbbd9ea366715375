// Several gateways of one etcd: a function like fetch() that asks another one for each connection. A cursor of one
// gateway continues at every other.
const PATH = '/v1/watch?'; // what follows it is percent-encoded, so it stands in an address once

export function anyOf(urls, fetch = globalThis.fetch) {
  const gateways = [urls].flat().map((url) => {
    // In Node there is no page: a relative URL is then not one of HTTP.
    const { protocol, origin, pathname } = new URL(url ?? 'x:', globalThis.location?.href ?? 'x:/');
    if (!/^http/.test(protocol)) throw TypeError(`${url} is not the URL of a gateway; write http://HOST:PORT`);
    return origin + pathname.replace(/\/*$/, '');
  });
  if (!gateways.length) throw TypeError('name the URL of one gateway, or of several');
  let at = Math.floor(Math.random() * gateways.length); // so that many clients spread
  return (address, init) => {
    const gateway = gateways[at++ % gateways.length];
    return fetch(gateway + address.slice(address.lastIndexOf(PATH)), init);
  };
}
