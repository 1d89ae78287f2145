'use strict';
// The device SDK against the hub: who gets in, who is put out, and what survives a lost connection.

const assert = require('node:assert/strict');
const { NoRetry } = require('azure-iot-common');
const { certificate } = require('./certificates');
const {
  TRANSPORTS, call, client, connect, desire, device, faults, heard, registry, serviceTwin, test, until,
} = require('./hub');

const STRANGE_KEY = Buffer.alloc(32, 'k').toString('base64');
// The hub may not have noticed yet that the device is back.
const PATIENCE = { connectTimeoutInSeconds: 20, responseTimeoutInSeconds: 20 };

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  test(`only a key of the device opens over ${name}`, async (t) => {
    const it = await device(t);
    const { secondaryKey } = it.identity.authentication.symmetricKey;
    await client(it, transport, `SharedAccessKey=${secondaryKey}`).open();
    await assert.rejects(client(it, transport, `SharedAccessKey=${STRANGE_KEY}`).open(), { name: 'UnauthorizedError' });
  });

  test(`only the certificate with the thumbprint opens over ${name}`, async (t) => {
    const [good, other] = [certificate(t, 'good'), certificate(t, 'other')];
    const it = await device(t, { type: 'selfSigned', x509Thumbprint: { primaryThumbprint: good.thumbprint } });
    const open = async (x509) => {
      const opened = client(it, transport, 'x509=true');
      await opened.setOptions(x509);
      await opened.open();
      return opened;
    };
    await assert.rejects(open(other), { name: 'UnauthorizedError' });
    const twin = await (await open(good)).getTwin();
    assert.equal(twin.properties.desired.$version, 1);
  });

  test(`methods and desired properties go on after a drop over ${name}`, async (t) => {
    const it = await device(t);
    const opened = await connect(it, transport);
    opened.onDeviceMethod('ping', (request, response) => response.send(200, 'pong'));
    const twin = await opened.getTwin();
    let desired;
    twin.on('properties.desired', (patch) => { desired = structuredClone(patch); });
    assert.deepEqual(await call(it, 'ping', null, PATIENCE), [200, 'pong']);
    for (const version of [2, 3]) {
      await faults(t, { dropConnections: true });
      await until(async () => (await serviceTwin(it)).connectionState === 'Connected');
      assert.deepEqual(await call(it, 'ping', null, PATIENCE), [200, 'pong']);
      // The SDK does not subscribe to these anew: the hub keeps its persisted session.
      await desire(it, { a: version });
      await until(() => desired?.a === version);
      assert.equal(desired.$version, version);
    }
  });
}

test('a refusal that may pass is outlasted, others are errors', async (t) => {
  const it = await device(t);
  await faults(t, { refuseConnects: { times: 2, code: 3 } });
  await connect(it);
  for (const [code, name] of [[1, 'NotImplementedError'], [2, 'UnauthorizedError'], [4, 'UnauthorizedError'], [5, 'UnauthorizedError']]) {
    await faults(t, { refuseConnects: { times: 1, code } });
    await assert.rejects(connect(await device(t)), { name });
  }
});

test('a device that is disabled or deleted is put out', async (t) => {
  const it = await device(t);
  const opened = await connect(it);
  // Otherwise the SDK tells nobody, and tries again for four minutes, whatever the refusal.
  opened.setRetryPolicy(new NoRetry());
  const lost = heard(opened, 'disconnect');
  await registry.update({ ...it.identity, status: 'disabled' });
  await lost;
  await assert.rejects(connect(it), { name: 'UnauthorizedError' });
  await registry.delete(it.id);
  await assert.rejects(connect(it), { name: 'UnauthorizedError' });
});

test('the newer of two connections stays', async (t) => {
  const it = await device(t);
  const older = await connect(it);
  older.setRetryPolicy(new NoRetry());
  const lost = heard(older, 'disconnect');
  const newer = await connect(it);
  await lost;
  newer.onDeviceMethod('who', (request, response) => response.send(201));
  assert.deepEqual(await call(it, 'who', null, PATIENCE), [201, null]);
});
