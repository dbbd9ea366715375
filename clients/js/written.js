// An answer like that of a gateway, whose lines are written here.
export function written(headers) {
  const [head, encoder] = [new Headers(headers), new TextEncoder()];
  head.set('Content-Type', 'application/x-ndjson');
  let [body, failed] = [null, false];
  const response = new Response(new ReadableStream({ start(controller) { body = controller; } }), { headers: head });
  return {
    response,
    write(lines) {
      if (!failed) body.enqueue(encoder.encode(lines));
    },
    fail(why) {
      failed = true;
      body.error(why);
    },
  };
}
