'use strict';
// A real Backstage backend (the catalog plugin only) whose entities a test drives over plain HTTP, without a Git host.
//
//   POST /mutate {"type":"full","added":[entity…]} or {"type":"delta","added":[entity…],"removed":[ref…]}
//        optional: "provider" ("main" or "other"), "locationKey"
//   POST /refresh {"keys":[…]}
//   PUT, GET, DELETE /files/NAME: files that the backend reads as locations of type url
//   GET /ready: 200 once the providers are connected
const http = require('node:http');
const { createBackend } = require('@backstage/backend-defaults');
const { createBackendModule, coreServices } = require('@backstage/backend-plugin-api');

const extensionPoints = () => {
  const stable = require('@backstage/plugin-catalog-node');
  // Older releases keep them apart.
  return stable.catalogProcessingExtensionPoint && stable.catalogLocationsExtensionPoint
    ? stable
    : { ...stable, ...require('@backstage/plugin-catalog-node/alpha') };
};
const { catalogProcessingExtensionPoint, catalogLocationsExtensionPoint } = extensionPoints();

// One provider per name: two let a test show conflicts over one entity.
class HarnessProvider {
  constructor(name) {
    this.name = name;
  }
  getProviderName() {
    return `harness-${this.name}`;
  }
  async connect(connection) {
    this.connection = connection;
  }
}

const withDefaults = (entity, provider) => ({
  apiVersion: 'backstage.io/v1alpha1',
  ...entity,
  metadata: {
    ...entity.metadata,
    annotations: {
      'backstage.io/managed-by-location': `url:http://harness.invalid/${provider}`,
      'backstage.io/managed-by-origin-location': `url:http://harness.invalid/${provider}`,
      ...entity.metadata?.annotations,
    },
  },
});

const deferred = (entity, provider, locationKey) => ({
  entity: withDefaults(entity, provider),
  locationKey: locationKey === undefined ? `harness-${provider}` : (locationKey ?? undefined),
});

const readBody = async request => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
};

const mutate = async (provider, body) => {
  const name = body.provider ?? 'main';
  const added = (body.added ?? []).map(entity => deferred(entity, name, body.locationKey));
  if (body.type === 'full') return provider.connection.applyMutation({ type: 'full', entities: added });
  const removed = (body.removed ?? []).map(entityRef => ({ entityRef }));
  return provider.connection.applyMutation({ type: 'delta', added, removed });
};

const serveFile = async (files, name, request, reply, response) => {
  if (request.method === 'PUT') {
    files.set(name, await readBody(request));
    return reply(200, { stored: name });
  }
  if (request.method === 'DELETE') {
    files.delete(name);
    return reply(200, { removed: name });
  }
  if (!files.has(name)) return reply(404, { error: `no file ${name}` });
  response.writeHead(200, { 'content-type': 'text/yaml' });
  return response.end(files.get(name));
};

function startControlServer({ port, providers, logger }) {
  const files = new Map();
  const server = http.createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://harness');
    const reply = (status, value) => {
      response.writeHead(status, { 'content-type': 'application/json' });
      response.end(`${JSON.stringify(value)}\n`);
    };
    try {
      if (pathname === '/ready') {
        const connected = Object.values(providers).every(provider => provider.connection);
        return reply(connected ? 200 : 503, { connected });
      }
      if (pathname.startsWith('/files/')) {
        return await serveFile(files, pathname.slice('/files/'.length), request, reply, response);
      }
      const body = JSON.parse((await readBody(request)) || '{}');
      const provider = providers[body.provider ?? 'main'];
      if (!provider?.connection) return reply(503, { error: `provider ${body.provider ?? 'main'} is not connected` });
      if (pathname === '/mutate') await mutate(provider, body);
      else if (pathname === '/refresh') await provider.connection.refresh({ keys: body.keys ?? [] });
      else return reply(404, { error: `no route ${pathname}` });
      return reply(200, {});
    } catch (error) {
      return reply(500, { error: String(error?.stack ?? error) });
    }
  });
  server.listen(port, '127.0.0.1', () => logger.info(`harness listens on 127.0.0.1:${port}`));
}

const harness = createBackendModule({
  pluginId: 'catalog',
  moduleId: 'harness',
  register(env) {
    env.registerInit({
      deps: {
        processing: catalogProcessingExtensionPoint,
        locations: catalogLocationsExtensionPoint,
        logger: coreServices.logger,
        config: coreServices.rootConfig,
      },
      async init({ processing, locations, logger, config }) {
        const providers = { main: new HarnessProvider('main'), other: new HarnessProvider('other') };
        for (const provider of Object.values(providers)) processing.addEntityProvider(provider);
        locations.setAllowedLocationTypes(['url', 'file']);
        startControlServer({ port: config.getNumber('harness.controlPort'), providers, logger });
      },
    });
  },
});

const backend = createBackend();
backend.add(import('@backstage/plugin-catalog-backend'));
backend.add(Promise.resolve({ default: harness }));
backend.start().catch(error => {
  console.error(error);
  process.exit(1);
});
