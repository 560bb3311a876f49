-- {schema} stands for the schema's name, quoted. Applied in one transaction, under an advisory lock.

-- Which steps were applied, and when.
CREATE TABLE {schema}.migrations (
    version    integer     NOT NULL PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_by text        NOT NULL
);

-- One row: the revision of the latest commit. Every commit locks it, so commits are totally ordered.
CREATE TABLE {schema}.revision (
    one       boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
    revision  bigint  NOT NULL,
    compacted bigint  NOT NULL          -- lists and watches from before this one are refused
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
INSERT INTO {schema}.revision (revision, compacted) VALUES (0, 0);

-- The records as they are now. JSONB cannot hold the character U+0000: a value with one is kept exactly in `raw`, and
-- `value` has U+FFFD in its place. The generated columns are for people and their queries; NovaCron reads by key.
CREATE TABLE {schema}.records (
    key     text COLLATE "C" NOT NULL CHECK (key ~ '^[a-zA-Z0-9._:@-]+(/[a-zA-Z0-9._:@-]+)*$'),
    kind    text COLLATE "C" NOT NULL CHECK (kind = split_part(key, '/', 1)),
    version bigint           NOT NULL,  -- the revision that wrote the value
    value   jsonb            NOT NULL,
    raw     text             CHECK (raw IS NULL OR replace(raw, '\u0000', '\ufffd')::jsonb = value),
    name    text GENERATED ALWAYS AS (left(value #>> '{body,meta,name}', 200)) STORED,
    project text GENERATED ALWAYS AS (left(value #>> '{body,meta,project}', 200)) STORED,
    node    text GENERATED ALWAYS AS
            (left(coalesce(value #>> '{body,node}', value #>> '{body,place,node}'), 200)) STORED,
    state   text GENERATED ALWAYS AS
            (left(coalesce(value #>> '{body,phase}', value #>> '{body,power,state}', value #>> '{body,state}'), 200)) STORED,
    PRIMARY KEY (key, kind)
) PARTITION BY LIST (kind);
CREATE INDEX records_by_version ON {schema}.records (version);

CREATE TABLE {schema}.cluster         PARTITION OF {schema}.records FOR VALUES IN ('cluster');
CREATE TABLE {schema}.members         PARTITION OF {schema}.records FOR VALUES IN ('member');
CREATE TABLE {schema}.owners          PARTITION OF {schema}.records FOR VALUES IN ('owner');
CREATE TABLE {schema}.nodes           PARTITION OF {schema}.records FOR VALUES IN ('node');
CREATE TABLE {schema}.node_status     PARTITION OF {schema}.records FOR VALUES IN ('node-status');
CREATE TABLE {schema}.pools           PARTITION OF {schema}.records FOR VALUES IN ('pool');
CREATE TABLE {schema}.pool_status     PARTITION OF {schema}.records FOR VALUES IN ('pool-status');
CREATE TABLE {schema}.vms             PARTITION OF {schema}.records FOR VALUES IN ('vm');
CREATE TABLE {schema}.runs            PARTITION OF {schema}.records FOR VALUES IN ('run');
CREATE TABLE {schema}.claims          PARTITION OF {schema}.records FOR VALUES IN ('claim');
CREATE TABLE {schema}.assignments     PARTITION OF {schema}.records FOR VALUES IN ('assignment');
CREATE TABLE {schema}.volumes         PARTITION OF {schema}.records FOR VALUES IN ('volume');
CREATE TABLE {schema}.volume_status   PARTITION OF {schema}.records FOR VALUES IN ('volume-status');
CREATE TABLE {schema}.images          PARTITION OF {schema}.records FOR VALUES IN ('image');
CREATE TABLE {schema}.image_status    PARTITION OF {schema}.records FOR VALUES IN ('image-status');
CREATE TABLE {schema}.snapshots       PARTITION OF {schema}.records FOR VALUES IN ('snapshot');
CREATE TABLE {schema}.snapshot_status PARTITION OF {schema}.records FOR VALUES IN ('snapshot-status');
CREATE TABLE {schema}.networks        PARTITION OF {schema}.records FOR VALUES IN ('network');
CREATE TABLE {schema}.ports           PARTITION OF {schema}.records FOR VALUES IN ('port');
CREATE TABLE {schema}.port_status     PARTITION OF {schema}.records FOR VALUES IN ('port-status');
CREATE TABLE {schema}.actions         PARTITION OF {schema}.records FOR VALUES IN ('action');
CREATE TABLE {schema}.action_status   PARTITION OF {schema}.records FOR VALUES IN ('action-status');
CREATE TABLE {schema}.names           PARTITION OF {schema}.records FOR VALUES IN ('name');
CREATE TABLE {schema}.operations      PARTITION OF {schema}.records FOR VALUES IN ('operation');
CREATE TABLE {schema}.events          PARTITION OF {schema}.records FOR VALUES IN ('event');
CREATE TABLE {schema}.audits          PARTITION OF {schema}.records FOR VALUES IN ('audit');
CREATE TABLE {schema}.reasons         PARTITION OF {schema}.records FOR VALUES IN ('reason');
CREATE TABLE {schema}.graves          PARTITION OF {schema}.records FOR VALUES IN ('grave');
CREATE TABLE {schema}.idempotency     PARTITION OF {schema}.records FOR VALUES IN ('idempotency');
CREATE TABLE {schema}.others          PARTITION OF {schema}.records DEFAULT;

CREATE INDEX vms_by_name       ON {schema}.vms       (project, name);
CREATE INDEX volumes_by_name   ON {schema}.volumes   (project, name);
CREATE INDEX images_by_name    ON {schema}.images    (project, name);
CREATE INDEX snapshots_by_name ON {schema}.snapshots (project, name);
CREATE INDEX networks_by_name  ON {schema}.networks  (project, name);
CREATE INDEX runs_by_node      ON {schema}.runs      (node, state);
CREATE INDEX claims_by_node    ON {schema}.claims    (node);
CREATE INDEX operations_by_state ON {schema}.operations (state);

-- The change log: what commits after the compaction floor replaced or deleted. A value was there from `version` until
-- before `replaced`; a row without a value tells watchers of a delete at `version` (= `replaced`).
CREATE TABLE {schema}.history (
    replaced bigint           NOT NULL,
    place    smallint         NOT NULL,
    key      text COLLATE "C" NOT NULL,
    version  bigint           NOT NULL,
    value    jsonb,
    raw      text,
    PRIMARY KEY (replaced, place)
);
CREATE INDEX history_by_version ON {schema}.history (version);

-- What became of each transaction: the revision it committed at, or NULL: never to be committed.
CREATE TABLE {schema}.txns (
    txn      uuid        NOT NULL PRIMARY KEY,
    revision bigint,
    decided  bigint      NOT NULL,      -- the store's revision then
    at       timestamptz NOT NULL
);
CREATE INDEX txns_by_time ON {schema}.txns (at);

-- Rows stay after a release: tokens never fall.
CREATE TABLE {schema}.leases (
    name    text COLLATE "C" NOT NULL PRIMARY KEY,
    holder  text,
    token   bigint           NOT NULL,
    expires timestamptz      NOT NULL
) WITH (fillfactor = 50);

-- The latest heartbeats. Not logged: gone after a crash of the server, and never on a standby.
CREATE UNLOGGED TABLE {schema}.beats (
    key   text COLLATE "C" NOT NULL PRIMARY KEY,
    value text             NOT NULL
) WITH (fillfactor = 50);

-- Applies a group of commits, each by itself: its preconditions in order, then its operations, or nothing. The parts of
-- all commits stand in common arrays; `need_to[c]` and `op_to[c]` are where those of commit c end. One row per commit:
--   status 0: committed, at `at_revision` (again, if it had been before);  1: ruled out by `outcome` before
--   status 2: the precondition `failed` (from zero) does not hold; `version_found` is what was there instead
-- Needs are 0: absent, 1: present, 2: at revision `need_number`, 3: the lease is held under token `need_number`.
CREATE FUNCTION {schema}.commit_group(
    txns uuid[],
    need_to integer[], need_what smallint[], need_key text[], need_number bigint[],
    op_to integer[], op_key text[], op_value text[]
) RETURNS TABLE (status smallint, at_revision bigint, failed integer, version_found bigint)
LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
DECLARE
    before bigint;
    tip    bigint;
    need   integer := 0;
    op     integer := 0;
    holds  boolean;
BEGIN
    -- Whoever has the row's lock is alone until its transaction ends; what the others committed is visible from here on.
    SELECT r.revision INTO STRICT before FROM revision r FOR UPDATE;
    tip := before;
    FOR c IN 1 .. cardinality(txns) LOOP
        status := 0;
        failed := NULL;
        version_found := NULL;
        SELECT t.revision INTO at_revision FROM txns t WHERE t.txn = txns[c];
        IF FOUND THEN
            IF at_revision IS NULL THEN
                status := 1;
            END IF;
            need := need_to[c];
            op := op_to[c];
            RETURN NEXT;
            CONTINUE;
        END IF;

        FOR n IN need + 1 .. need_to[c] LOOP
            IF need_what[n] = 3 THEN
                -- Locked, so that no one is granted the lease before this commit can be seen.
                SELECT l.token = need_number[n] AND l.holder IS NOT NULL AND clock_timestamp() < l.expires INTO holds
                    FROM leases l WHERE l.name = need_key[n] FOR SHARE;
                holds := coalesce(holds, false);
            ELSE
                SELECT r.version INTO version_found FROM records r
                    WHERE r.key = need_key[n] AND r.kind = split_part(need_key[n], '/', 1);
                holds := CASE need_what[n] WHEN 0 THEN version_found IS NULL
                                           WHEN 1 THEN version_found IS NOT NULL
                                           ELSE version_found IS NOT DISTINCT FROM need_number[n] END;
            END IF;
            IF NOT holds THEN
                status := 2;
                failed := n - need - 1;
                EXIT;
            END IF;
        END LOOP;
        need := need_to[c];
        IF status = 2 THEN
            op := op_to[c];
            RETURN NEXT;
            CONTINUE;
        END IF;

        tip := tip + 1;
        FOR o IN op + 1 .. op_to[c] LOOP
            INSERT INTO history (replaced, place, key, version, value, raw)
                SELECT tip, 2 * (o - op), r.key, r.version, r.value, r.raw FROM records r
                WHERE r.key = op_key[o] AND r.kind = split_part(op_key[o], '/', 1);
            IF op_value[o] IS NOT NULL THEN
                INSERT INTO records (key, kind, version, value, raw)
                    VALUES (op_key[o], split_part(op_key[o], '/', 1), tip,
                            replace(op_value[o], '\u0000', '\ufffd')::jsonb,
                            CASE WHEN strpos(op_value[o], '\u0000') > 0 THEN op_value[o] END)
                    ON CONFLICT (key, kind) DO UPDATE
                    SET version = excluded.version, value = excluded.value, raw = excluded.raw;
            ELSIF FOUND THEN
                DELETE FROM records r WHERE r.key = op_key[o] AND r.kind = split_part(op_key[o], '/', 1);
                INSERT INTO history (replaced, place, key, version) VALUES (tip, 2 * (o - op) + 1, op_key[o], tip);
            END IF;
        END LOOP;
        op := op_to[c];
        INSERT INTO txns (txn, revision, decided, at) VALUES (txns[c], tip, tip, clock_timestamp());
        at_revision := tip;
        RETURN NEXT;
    END LOOP;
    IF tip > before THEN
        UPDATE revision SET revision = tip;
        PERFORM pg_notify(current_schema(), tip::text);
    END IF;
END
$$;

-- The revision at which a transaction was committed, or NULL: from then on it never will be.
CREATE FUNCTION {schema}.outcome(asked uuid) RETURNS bigint
LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
DECLARE
    tip    bigint;
    result bigint;
BEGIN
    SELECT r.revision INTO STRICT tip FROM revision r FOR UPDATE;
    SELECT t.revision INTO result FROM txns t WHERE t.txn = asked;
    IF NOT FOUND THEN
        INSERT INTO txns (txn, revision, decided, at) VALUES (asked, NULL, tip, clock_timestamp());
    END IF;
    RETURN result;
END
$$;

-- Raises the compaction floor, and returns it.
CREATE FUNCTION {schema}.compact(before bigint) RETURNS bigint
LANGUAGE sql SET search_path = {schema}, pg_temp AS $$
    UPDATE revision r SET compacted = greatest(r.compacted, least(r.revision, before)) RETURNING r.compacted;
$$;

-- Deletes some of what only reads from before the floor need, and of the outcomes decided before it that are older than
-- an hour; how many rows.
CREATE FUNCTION {schema}.sweep(floor bigint, many integer) RETURNS bigint
LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
DECLARE
    old_values   bigint;
    old_outcomes bigint;
BEGIN
    DELETE FROM history h WHERE (h.replaced, h.place) IN
        (SELECT i.replaced, i.place FROM history i WHERE i.replaced <= floor ORDER BY i.replaced LIMIT many);
    GET DIAGNOSTICS old_values = ROW_COUNT;
    DELETE FROM txns t WHERE t.txn IN
        (SELECT i.txn FROM txns i WHERE i.at <= clock_timestamp() - interval '1 hour' AND i.decided < floor
         ORDER BY i.at LIMIT many);
    GET DIAGNOSTICS old_outcomes = ROW_COUNT;
    RETURN old_values + old_outcomes;
END
$$;

-- Takes or keeps a lease; who holds it afterwards, under which token, and for how many microseconds.
CREATE FUNCTION {schema}.lease_acquire(asked text, asker text, ttl_ms bigint)
RETURNS TABLE (granted boolean, present text, present_token bigint, remaining_us bigint)
LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
DECLARE
    lease leases%ROWTYPE;
    now   timestamptz;
BEGIN
    INSERT INTO leases (name, token, expires) VALUES (asked, 0, '-infinity') ON CONFLICT DO NOTHING;
    SELECT * INTO STRICT lease FROM leases l WHERE l.name = asked FOR UPDATE;
    now := clock_timestamp();
    IF lease.holder IS NULL OR lease.expires <= now THEN
        lease.token := lease.token + 1;
        lease.holder := asker;
    END IF;
    granted := lease.holder = asker;
    IF granted THEN
        lease.expires := now + ttl_ms * interval '1 millisecond';
        UPDATE leases l SET holder = lease.holder, token = lease.token, expires = lease.expires WHERE l.name = asked;
    END IF;
    present := lease.holder;
    present_token := lease.token;
    remaining_us := extract(epoch FROM lease.expires - now) * 1000000;
    RETURN NEXT;
END
$$;

-- Extends a lease if it is held under that token; and who holds it now, if anybody does.
CREATE FUNCTION {schema}.lease_renew(asked text, asker text, asker_token bigint, ttl_ms bigint)
RETURNS TABLE (renewed boolean, present text, present_token bigint)
LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
DECLARE
    lease leases%ROWTYPE;
    now   timestamptz;
BEGIN
    SELECT * INTO lease FROM leases l WHERE l.name = asked FOR UPDATE;
    now := clock_timestamp();
    IF FOUND AND lease.holder IS NOT NULL AND now < lease.expires THEN
        present := lease.holder;
        present_token := lease.token;
    END IF;
    renewed := coalesce(present = asker AND present_token = asker_token, false);
    IF renewed THEN
        UPDATE leases l SET expires = now + ttl_ms * interval '1 millisecond' WHERE l.name = asked;
    END IF;
    RETURN NEXT;
END
$$;
