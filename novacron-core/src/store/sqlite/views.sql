-- For people who look with the `sqlite3` shell; docs/guides/looking-into-the-database.md explains them.
-- Derived data: at every open, each view that differs from its text here is made anew. They show the members that the
-- model has, and nothing for a record that is no JSON. No column holds a whole record: those are in `bodies`.

-- Each record's content, without its envelope.
CREATE VIEW bodies AS
    SELECT key, version AS revision, CASE WHEN json_valid(value) THEN json_extract(value, '$.body') END AS body
    FROM records;

CREATE VIEW kinds AS
    SELECT substr(key, 1, instr(key || '/', '/') - 1) AS kind, count(*) AS records, sum(length(value)) AS bytes,
           max(version) AS latest_revision
    FROM records GROUP BY kind;

CREATE VIEW recent AS
    SELECT version AS revision, key, CASE WHEN value IS NULL THEN 'delete' ELSE 'put' END AS change,
           length(value) AS bytes
    FROM (SELECT version, key, value FROM records UNION ALL SELECT version, key, value FROM history)
    ORDER BY version DESC;

CREATE VIEW lease_holders AS
    SELECT name, holder, token, strftime('%Y-%m-%dT%H:%M:%fZ', expires / 1000.0, 'unixepoch') AS expires_at
    FROM leases WHERE holder IS NOT NULL;

CREATE VIEW transactions AS
    SELECT lower(hex(txn)) AS txn, coalesce('committed at ' || revision, 'never committed') AS outcome,
           strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000.0, 'unixepoch') AS decided_at
    FROM txns;

-- The processes of the cluster. `state` is a word, or an object with the time.
CREATE VIEW members AS
    SELECT json_extract(body, '$.id') AS id, json_extract(body, '$.name') AS name, json_extract(body, '$.role') AS role,
           json_extract(body, '$.version') AS version, json_extract(body, '$.state') AS state
    FROM bodies WHERE key >= 'member/' AND key < 'member0';

CREATE VIEW nodes AS
    SELECT substr(node.key, 6) AS name, json_extract(status.body, '$.state') AS state,
           json_extract(node.body, '$.schedulable') AS schedulable,
           json_extract(status.body, '$.host.capabilities.hypervisor') AS hypervisor,
           json_extract(status.body, '$.host.capabilities.acceleration') AS acceleration,
           json_extract(status.body, '$.host.capabilities.cpus') AS cpus,
           json_extract(status.body, '$.host.capabilities.memory') AS memory_mib,
           json_extract(status.body, '$.message') AS message
    FROM bodies AS node LEFT JOIN bodies AS status ON status.key = 'node-status/' || substr(node.key, 6)
    WHERE node.key >= 'node/' AND node.key < 'node0';

CREATE VIEW pools AS
    SELECT substr(key, 6) AS name, json_extract(body, '$.driver') AS driver, json_extract(body, '$.scope') AS scope
    FROM bodies WHERE key >= 'pool/' AND key < 'pool0';

-- One row for each start of a VM that a node knows of.
CREATE VIEW runs AS
    SELECT json_extract(vm.body, '$.meta.name') AS vm, json_extract(run.body, '$.node') AS node,
           json_extract(run.body, '$.epoch') AS epoch, json_extract(run.body, '$.phase') AS phase,
           strftime('%Y-%m-%dT%H:%M:%SZ', json_extract(run.body, '$.since') / 1000.0, 'unixepoch') AS since,
           json_extract(run.body, '$.message') AS message, json_extract(run.body, '$.exit') AS exit, run.key AS key
    FROM bodies AS run LEFT JOIN bodies AS vm ON vm.key = 'vm/' || json_extract(run.body, '$.vm')
    WHERE run.key >= 'run/' AND run.key < 'run0';

-- `wanted` is what was asked for; `phase` that of the VM's present run, nothing if it has none.
CREATE VIEW vms AS
    SELECT json_extract(vm.body, '$.meta.name') AS name, json_extract(vm.body, '$.meta.project') AS project,
           CASE WHEN json_extract(vm.body, '$.meta.deleted_at') IS NULL THEN json_extract(vm.body, '$.power.state')
                ELSE 'deleted' END AS wanted,
           json_extract(run.body, '$.phase') AS phase, json_extract(claim.body, '$.place.node') AS node,
           json_extract(claim.body, '$.epoch') AS epoch, json_extract(vm.body, '$.machine.hardware.vcpus') AS vcpus,
           json_extract(vm.body, '$.machine.hardware.memory') AS memory_mib, json_extract(run.body, '$.message') AS message,
           substr(vm.key, 4) AS id
    FROM bodies AS vm LEFT JOIN bodies AS claim ON claim.key = 'claim/' || vm.key
         LEFT JOIN bodies AS run
         ON run.key = 'run/' || json_extract(claim.body, '$.place.node') || '/' || substr(vm.key, 4)
    WHERE vm.key >= 'vm/' AND vm.key < 'vm0';

-- `writer` is the VM that may write to it.
CREATE VIEW volumes AS
    SELECT json_extract(it.body, '$.meta.name') AS name, json_extract(it.body, '$.meta.project') AS project,
           json_extract(it.body, '$.pool') AS pool, json_extract(it.body, '$.size') AS bytes,
           CASE WHEN json_type(status.body, '$.state') = 'object' THEN 'failed'
                ELSE json_extract(status.body, '$.state') END AS state,
           json_extract(status.body, '$.state.failed.reason') AS reason,
           json_extract(writer.body, '$.vm') AS writer, substr(it.key, 8) AS id
    FROM bodies AS it LEFT JOIN bodies AS status ON status.key = 'volume-status/' || substr(it.key, 8)
         LEFT JOIN bodies AS writer ON writer.key = 'claim/' || it.key
    WHERE it.key >= 'volume/' AND it.key < 'volume0';

CREATE VIEW images AS
    SELECT json_extract(it.body, '$.meta.name') AS name, json_extract(it.body, '$.meta.project') AS project,
           json_extract(it.body, '$.pool') AS pool,
           CASE WHEN json_type(status.body, '$.state') = 'object' THEN 'failed'
                ELSE json_extract(status.body, '$.state') END AS state,
           json_extract(status.body, '$.state.failed.reason') AS reason, substr(it.key, 7) AS id
    FROM bodies AS it LEFT JOIN bodies AS status ON status.key = 'image-status/' || substr(it.key, 7)
    WHERE it.key >= 'image/' AND it.key < 'image0';

CREATE VIEW snapshots AS
    SELECT json_extract(it.body, '$.meta.name') AS name, json_extract(it.body, '$.meta.project') AS project,
           json_extract(volume.body, '$.meta.name') AS volume,
           CASE WHEN json_type(status.body, '$.state') = 'object' THEN 'failed'
                ELSE json_extract(status.body, '$.state') END AS state,
           json_extract(status.body, '$.state.failed.reason') AS reason, substr(it.key, 10) AS id
    FROM bodies AS it LEFT JOIN bodies AS status ON status.key = 'snapshot-status/' || substr(it.key, 10)
         LEFT JOIN bodies AS volume ON volume.key = 'volume/' || json_extract(it.body, '$.volume')
    WHERE it.key >= 'snapshot/' AND it.key < 'snapshot0';

CREATE VIEW networks AS
    SELECT json_extract(body, '$.meta.name') AS name, json_extract(body, '$.meta.project') AS project,
           json_extract(body, '$.kind') AS kind, substr(key, 9) AS id
    FROM bodies WHERE key >= 'network/' AND key < 'network0';

CREATE VIEW ports AS
    SELECT json_extract(vm.body, '$.meta.name') AS vm, json_extract(network.body, '$.meta.name') AS network,
           json_extract(port.body, '$.mac') AS mac, json_extract(status.body, '$.state') AS state,
           substr(port.key, 6) AS id
    FROM bodies AS port LEFT JOIN bodies AS status ON status.key = 'port-status/' || substr(port.key, 6)
         LEFT JOIN bodies AS vm ON vm.key = 'vm/' || json_extract(port.body, '$.vm')
         LEFT JOIN bodies AS network ON network.key = 'network/' || json_extract(port.body, '$.network')
    WHERE port.key >= 'port/' AND port.key < 'port0';

-- `verb` is what was asked: create, delete, power, update, record, action. `name` is the target's, while it is there.
CREATE VIEW operations AS
    SELECT at, verb, target, json_extract((SELECT body FROM bodies WHERE key = target), '$.meta.name') AS name, state,
           reason, progress, principal, id
    FROM (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', json_extract(body, '$.created_at') / 1000.0, 'unixepoch') AS at,
                 CASE WHEN json_type(body, '$.kind') = 'text' THEN json_extract(body, '$.kind')
                      ELSE (SELECT key FROM json_each(body, '$.kind')) END AS verb,
                 (SELECT key || '/' || value FROM json_each(body, '$.target')) AS target,
                 CASE WHEN json_type(body, '$.state') = 'object' THEN 'failed'
                      ELSE json_extract(body, '$.state') END AS state,
                 json_extract(body, '$.state.failed.reason') AS reason, json_extract(body, '$.progress') AS progress,
                 json_extract(body, '$.principal') AS principal, substr(key, 11) AS id
          FROM bodies WHERE key >= 'operation/' AND key < 'operation0')
    ORDER BY id;

-- `verb` is reset or restore; `state` is started, done, failed or unknown, or nothing before it was begun.
CREATE VIEW actions AS
    SELECT strftime('%Y-%m-%dT%H:%M:%SZ', json_extract(it.body, '$.created_at') / 1000.0, 'unixepoch') AS at,
           CASE WHEN json_type(it.body, '$.verb') = 'text' THEN json_extract(it.body, '$.verb')
                ELSE (SELECT key FROM json_each(it.body, '$.verb')) END AS verb,
           json_extract(vm.body, '$.meta.name') AS vm, (SELECT key FROM json_each(status.body)) AS state,
           json_extract(status.body, '$.failed.reason') AS reason, substr(it.key, 8) AS id
    FROM bodies AS it LEFT JOIN bodies AS status ON status.key = 'action-status/' || substr(it.key, 8)
         LEFT JOIN bodies AS vm ON vm.key = 'vm/' || json_extract(it.body, '$.vm')
    WHERE it.key >= 'action/' AND it.key < 'action0' ORDER BY it.key;

CREATE VIEW events AS
    SELECT at, object, json_extract((SELECT body FROM bodies WHERE key = object), '$.meta.name') AS name, reason,
           message, id
    FROM (SELECT strftime('%Y-%m-%dT%H:%M:%fZ', json_extract(body, '$.at') / 1000.0, 'unixepoch') AS at,
                 (SELECT key || '/' || value FROM json_each(body, '$.object')) AS object,
                 json_extract(body, '$.reason') AS reason, json_extract(body, '$.message') AS message,
                 substr(key, 7) AS id
          FROM bodies WHERE key >= 'event/' AND key < 'event0')
    ORDER BY id;

-- Who asked for what.
CREATE VIEW audits AS
    SELECT strftime('%Y-%m-%dT%H:%M:%fZ', json_extract(body, '$.at') / 1000.0, 'unixepoch') AS at,
           json_extract(body, '$.principal') AS principal, json_extract(body, '$.verb') AS verb,
           (SELECT key || '/' || value FROM json_each(body, '$.object')) AS object,
           json_extract(body, '$.project') AS project
    FROM bodies WHERE key >= 'audit/' AND key < 'audit0' ORDER BY key;
