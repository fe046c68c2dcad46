// A function with Fn's development kit for Node that does what the body says.
const fdk = require('@fnproject/fdk');

let calls = 0;

fdk.handle((body, ctx) => {
  calls += 1;
  switch (body.do) {
    case 'throw':
      throw new Error('thrown by the handler');
    case 'exit':
      process.exit(3);
      break;
    case 'nothing':
      return undefined;
    case 'status': {
      const gateway = ctx.httpGateway;
      gateway.statusCode = 201;
      gateway.setResponseHeader('X-Kit', 'seen');
      return { method: gateway.method, url: gateway.requestURL };
    }
    case 'echo':
      return body;
    default:
      return {
        calls,
        call_id: ctx.callID,
        deadline: ctx.deadline.toISOString(),
        header: ctx.getHeader('X-Any'),
        app: process.env.FN_APP_NAME,
      };
  }
});
