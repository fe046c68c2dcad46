// A runtime for AWS Lambda handlers in one file, over the Runtime API: `node bootstrap.js`. AWS's own is `aws-lambda-ric`.
const http = require('node:http');
const path = require('node:path');

const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(':');
const agent = new http.Agent({ keepAlive: true });

function ask(method, what, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port, method, agent, path: `/2018-06-01/runtime/${what}` }, (answer) => {
      const pieces = [];
      answer.on('data', (piece) => pieces.push(piece));
      answer.on('end', () => resolve({ headers: answer.headers, body: Buffer.concat(pieces).toString() }));
    });
    request.on('error', reject);
    request.end(body === undefined ? undefined : JSON.stringify(body ?? null));
  });
}

const failed = (error) => ({ errorType: error.name, errorMessage: error.message, trace: error.stack.split('\n') });

async function main() {
  let handler;
  try {
    const [file, name] = process.env._HANDLER.split('.');
    handler = require(path.resolve(process.env.LAMBDA_TASK_ROOT, file))[name];
  } catch (error) {
    await ask('POST', 'init/error', failed(error));
    throw error;
  }
  for (;;) {
    const { headers, body } = await ask('GET', 'invocation/next');
    const id = headers['lambda-runtime-aws-request-id'];
    const deadline = Number(headers['lambda-runtime-deadline-ms']);
    const context = { awsRequestId: id, getRemainingTimeInMillis: () => deadline - Date.now() };
    try {
      await ask('POST', `invocation/${id}/response`, (await handler(JSON.parse(body), context)) ?? null);
    } catch (error) {
      await ask('POST', `invocation/${id}/error`, failed(error));
    }
  }
}

main();
