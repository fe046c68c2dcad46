// A function with Fn's development kit for Node, unchanged.
const fdk = require('@fnproject/fdk');

fdk.handle((input) => {
  const name = (input && input.name) || 'world';
  return { message: `Hello, ${name}!` };
});
