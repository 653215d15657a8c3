// Serves the listener that SERVER_STARTER_PORT names. Each answer names the generation that serves.

'use strict';

const http = require('http');

const generation = process.env.SERVER_STARTER_GENERATION;
const fd = Number(process.env.SERVER_STARTER_PORT.split('=').pop());

const server = http.createServer((request, response) => response.end(`generation ${generation}\n`));
server.listen({ fd });

// No new connection from here on; the process ends with the last one that is open.
process.on('SIGTERM', () => server.close());
