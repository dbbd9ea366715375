// Tokens: a function like fetch() that sends the present one, and a mirror that continues with the next one in time.

const NEXT_TOKEN = 150_000; // ms after which no other token is hoped for: a Secret reaches a pod's files late
const OWN_TIME = 50_000; // ms that a function may take for the token: until then, a gateway that says nothing is not silent

export function withToken(fetch, token, mirror, listen) {
  const isFunction = token.call;
  let sent; // the token of the present stream
  let expires = null; // when it ends
  let refused; // since when tokens are refused; null if the last one was accepted, undefined before the first answer
  let timer;

  const present = async () => `${(isFunction ? await token() : token) ?? ''}`.trim();

  // A token that ends soon is replaced before that, and not with all others at once.
  const renewLater = () => {
    const ending = expires;
    timer = setTimeout(async () => {
      const next = await present().catch(() => null);
      if (expires !== ending) return;
      if (!next || next === sent) return renewLater();
      mirror.reason = 'the token is renewed';
      mirror.reconnect();
    }, 1000 + 19_000 * Math.random());
  };
  mirror.addEventListener('state', () => {
    if (mirror.expires === expires) return;
    expires = mirror.expires;
    clearTimeout(timer);
    if (expires && isFunction) renewLater();
  });

  return async function ask(url, init, isSecond) {
    const { signal } = init;
    signal.throwIfAborted();
    listen(OWN_TIME);
    const bearer = await present();
    signal.throwIfAborted(); // another try has begun, which asks for itself
    listen();
    sent = bearer;
    // The browser's own error would show the token.
    if (/[^!-~]/.test(sent)) throw { reason: 'the token is not one that a header can have', final: true };
    const headers = { ...init.headers, ...(sent && { Authorization: `Bearer ${sent}` }) };
    const answer = await fetch(url, { ...init, headers });
    if (answer.ok) refused = null;
    if (answer.status !== 401 || !isFunction) return answer;
    // The token may have ended a moment ago: the function is asked for the present one.
    if (!isSecond) return ask(url, init, true);
    if (refused === null) refused = performance.now(); // a clock of this machine alone, which nobody sets
    return Object.assign(answer, { temporary: performance.now() - refused < NEXT_TOKEN });
  };
}
