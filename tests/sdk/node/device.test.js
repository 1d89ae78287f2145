'use strict';
// The device SDK against the hub: what a device does in its daily life, over both of its transports.

const assert = require('node:assert/strict');
const { Message } = require('azure-iot-common');
const {
  TRANSPORTS,
  call,
  connect,
  desire,
  device,
  faults,
  heard,
  rest,
  serviceTwin,
  test,
  until,
} = require('./hub');

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  test(`twin over ${name}`, async (t) => {
    const it = await device(t);
    const client = await connect(it, transport);
    const twin = await client.getTwin();
    assert.equal(twin.properties.desired.$version, 1);

    const patches = [];
    // The SDK calls a new listener at once with what it has, and changes that later.
    twin.on('properties.desired', (patch) => patches.push(structuredClone(patch)));
    await until(() => patches.length === 1);
    await desire(it, { firmware: { fwVersion: '2.0', channel: 'beta' } });
    await until(() => patches.length === 2);
    await desire(it, { firmware: { channel: null } });
    await until(() => patches.length === 3);
    assert.deepEqual(patches, [
      { $version: 1 },
      { firmware: { fwVersion: '2.0', channel: 'beta' }, $version: 2 },
      { firmware: { channel: null }, $version: 3 },
    ]);

    const update = (patch) =>
      new Promise((resolve, reject) => {
        twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()));
      });
    await update({ firmwareStatus: 'standBy', firmware: { a: 1, b: null } });
    const { reported } = (await serviceTwin(it)).properties;
    assert.equal(reported.firmwareStatus, 'standBy');
    assert.deepEqual(reported.firmware, { a: 1 });
    assert.equal(reported.$version, 2);
    // The SDK gives the hub's message, and nothing to tell errors apart by.
    await assert.rejects(update({ 'a key': 1 }), /property name a key contains invalid character ' '/);
    await faults(t, { failNextPatch: 429 });
    await assert.rejects(update({ a: 1 }), /the test asked for this failure/);
    await update({ a: 1 });
    assert.equal((await client.getTwin()).properties.reported.a, 1);
  });

  test(`direct methods over ${name}`, async (t) => {
    const it = await device(t);
    const client = await connect(it, transport);
    const requests = [];
    client.onDeviceMethod('firmwareUpdate', (request, response) => {
      requests.push(request.payload);
      return response.send(200, { started: true });
    });
    client.onDeviceMethod('empty', (request, response) => response.send(404));
    // Subscribing is not awaited by the SDK.
    const patience = { connectTimeoutInSeconds: 20, responseTimeoutInSeconds: 20 };
    assert.deepEqual(await call(it, 'firmwareUpdate', { uri: 'é' }, patience), [200, { started: true }]);
    assert.deepEqual(await call(it, 'firmwareUpdate'), [200, { started: true }]);
    assert.deepEqual(requests, [{ uri: 'é' }, null]);
    assert.deepEqual(await call(it, 'empty', []), [404, null]);
  });

  test(`messages over ${name}`, async (t) => {
    const it = await device(t);
    const client = await connect(it, transport);
    const message = new Message('{"temperature": 21.5}');
    message.messageId = 'm 1';
    message.contentType = 'application/json';
    message.properties.add('level', 'warn/ing');
    message.properties.add('a key', 'é=ü');
    await client.sendEvent(message);
    const [event] = await rest('GET', `/emulator/events/${it.id}`);
    assert.equal(event.body, '{"temperature": 21.5}');
    assert.deepEqual(event.properties, {
      '$.mid': 'm 1',
      '$.ct': 'application/json',
      level: 'warn/ing',
      'a key': 'é=ü',
    });

    const send = (body) =>
      rest('POST', `/devices/${it.id}/messages/devicebound`, body, { 'iothub-app-colour': 'red' });
    const { messageId } = await send('first');
    const received = await heard(client, 'message');
    assert.equal(received.data.toString(), 'first');
    assert.equal(received.messageId, messageId);
    assert.equal(received.properties.getItem(0).value, 'red');
    await client.complete(received);
  });
}

test('a method of a device that is away, or silent, or unknown', async (t) => {
  const it = await device(t);
  // The SDK cannot tell from the body, a JSON text in a JSON text, what it is.
  const refused = (status, code) => (error) => {
    assert.equal(error.response.statusCode, status);
    assert.equal(error.response.headers['iothub-errorcode'], code);
    return true;
  };
  await assert.rejects(call(it, 'anything'), refused(404, 'DeviceNotOnline'));
  const client = await connect(it);
  await assert.rejects(call(it, 'anything'), refused(404, 'DeviceNotOnline'));
  client.onDeviceMethod('silence', () => {});
  const timeouts = { connectTimeoutInSeconds: 5, responseTimeoutInSeconds: 5 };
  await assert.rejects(call(it, 'silence', null, timeouts), refused(504, 'GatewayTimeout'));
  await assert.rejects(call({ id: 'nobody' }, 'anything'), refused(404, 'DeviceNotFound'));
});
