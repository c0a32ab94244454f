-- Every query of the PostgreSQL spool. A query begins at a line `-- :name` with a sentence about it.
--
-- {spool} is the spool's schema, {columns} what makes an entry (rows.py), {never} the due
-- time of what is held. States: 0 waiting, 1 claimed, 2 delivered, 3 bounced; 16 and more: the same,
-- set aside. Where a number is -1, or bytes are empty, in an array, NULL is meant.
--
-- Who changes rows locks them in the order of their keys, and locks lines before rows; who can do
-- without a row skips it where it is locked. So batches that cross wait for each other, and do not
-- lock each other up.

-- :begin  Every transaction begins so: nothing is left over in the session, as PgBouncer wants it.
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE

-- :begin_looking  The same where it is not known yet whether the server may write.
BEGIN ISOLATION LEVEL READ COMMITTED

-- :settings  For this transaction alone: what a commit waits for, and how long all else may take; and that rows are fetched by index, one by one: the planner cannot know how few are wanted of each lane, and would read all of a large spool for one of them.
SELECT set_config('synchronous_commit', %(commit)s, true),
       set_config('statement_timeout', %(statement_ms)s, true),
       set_config('lock_timeout', %(statement_ms)s, true),
       set_config('idle_in_transaction_session_timeout', %(idle_ms)s, true),
       set_config('jit', 'off', true),
       set_config('enable_seqscan', %(walks)s, true),
       set_config('enable_bitmapscan', %(walks)s, true),
       set_config('enable_hashjoin', %(walks)s, true),
       set_config('enable_mergejoin', %(walks)s, true)

-- :lock_lines  One at a time changes who stands in these lines; given in their order.
SELECT pg_advisory_xact_lock(%(lock_class)s::integer, line) FROM unnest(%(lines)b::integer[]) AS line

-- :accept  Take these in whose keys nobody knows; gives the keys that were new.
WITH given AS MATERIALIZED (
    SELECT nextval('{spool}.message_id') AS id, v.*
    FROM unnest(
        %(key)b::bytea[], %(destination)b::bytea[], %(state)b::integer[], %(due_at)b::bigint[],
        %(ready_at)b::bigint[], %(attempt)b::integer[], %(leased_until)b::bigint[],
        %(accepted_at)b::bigint[], %(expires_at)b::bigint[], %(order_key)b::bytea[],
        %(name)b::bytea[], %(fingerprint)b::bytea[], %(nonce)b::bytea[], %(repeat)b::boolean[],
        %(keep_until)b::bigint[], %(answer_until)b::bigint[], %(sweep_at)b::bigint[],
        %(status)b::bytea[], %(request)b::bytea[], %(answer)b::bytea[]
    ) AS v (
        key, destination, state, due_at, ready_at, attempt, leased_until, accepted_at, expires_at,
        order_key, name, fingerprint, nonce, repeat, keep_until, answer_until, sweep_at, status,
        request, answer
    )
), taken AS (
    INSERT INTO {spool}.message (
        id, key, destination, state, due_at, ready_at, attempt, leased_until, accepted_at,
        expires_at, order_key, name, fingerprint, nonce, repeat, keep_until, answer_until, sweep_at,
        status
    )
    SELECT id, key, destination, state, due_at, nullif(ready_at, -1), attempt, leased_until,
           accepted_at, expires_at, order_key, name, fingerprint, nonce, repeat, keep_until,
           answer_until, nullif(sweep_at, -1), status
    FROM given ORDER BY key
    ON CONFLICT (key) DO NOTHING
    RETURNING id, key
), bodies AS (
    INSERT INTO {spool}.body (id, request, answer)
    SELECT taken.id, nullif(given.request, ''::bytea), nullif(given.answer, ''::bytea)
    FROM taken JOIN given USING (id)
)
SELECT key FROM taken

-- :lock_keys  Nobody else changes these now. They are read by a statement behind it: in this one, a row that was waited for would come as it is by now, and what is joined to it as it was before.
SELECT id FROM {spool}.message WHERE key = ANY(%(keys)b::bytea[]) ORDER BY key FOR UPDATE

-- :delete  These rows and their bodies go.
WITH gone AS (DELETE FROM {spool}.body WHERE id = ANY(%(ids)b::bigint[]))
DELETE FROM {spool}.message WHERE id = ANY(%(ids)b::bigint[])

-- :line_up  Only the head of a line is ready: newcomers join at the end, but a claim that starts to wait can come in before the old head, so the first few are looked at.
UPDATE {spool}.message AS m
SET ready_at = CASE WHEN f.place = 1
                    THEN nullif(greatest(m.due_at, m.leased_until), {never}) END
FROM unnest(%(destinations)b::bytea[], %(order_keys)b::bytea[]) AS l (destination, order_key)
CROSS JOIN LATERAL (
    SELECT id, row_number() OVER (ORDER BY id) AS place
    FROM (
        SELECT id FROM {spool}.message
        WHERE destination = l.destination AND order_key = l.order_key AND order_key <> ''
          AND state = 0
        ORDER BY id LIMIT %(first)s
    ) AS few
) AS f
WHERE m.id = f.id AND m.state = 0
  AND m.ready_at IS DISTINCT FROM
      CASE WHEN f.place = 1 THEN nullif(greatest(m.due_at, m.leased_until), {never}) END

-- :survey  A loose index scan: one step for each destination, whatever waits there.
WITH RECURSIVE lane AS (
    (SELECT destination FROM {spool}.message
     WHERE ready_at IS NOT NULL AND destination >= %(first)b::bytea
     ORDER BY destination LIMIT 1)
    UNION ALL
    SELECT (SELECT m.destination FROM {spool}.message AS m
            WHERE m.ready_at IS NOT NULL AND m.destination > lane.destination
            ORDER BY m.destination LIMIT 1)
    FROM lane WHERE lane.destination IS NOT NULL
)
SELECT lane.destination,
       (SELECT m.ready_at FROM {spool}.message AS m
        WHERE m.destination = lane.destination AND m.ready_at IS NOT NULL
        ORDER BY m.ready_at LIMIT 1)
FROM lane WHERE lane.destination IS NOT NULL LIMIT %(limit)s

-- :lease  Of all wanted lanes at once, so many of each: the earliest due, in nobody's hands. What it gives is how they were before.
WITH want AS (
    SELECT * FROM unnest(%(destinations)b::bytea[], %(limits)b::integer[])
             WITH ORDINALITY AS w (destination, most, place)
), picked AS MATERIALIZED (
    SELECT w.place, r.* FROM want AS w CROSS JOIN LATERAL (
        SELECT {columns}, m.ready_at FROM {spool}.message AS m
        WHERE m.destination = w.destination AND m.ready_at <= %(now)s
        ORDER BY m.ready_at, m.id LIMIT w.most FOR UPDATE OF m SKIP LOCKED
    ) AS r
), leased AS (
    UPDATE {spool}.message AS m
    SET attempt = m.attempt + 1, leased_until = %(until)s,
        ready_at = greatest(m.due_at, %(until)s)
    FROM picked WHERE m.id = picked.id
)
SELECT {picked}, b.request, NULL::bytea
FROM picked AS m LEFT JOIN {spool}.body AS b ON b.id = m.id
ORDER BY m.place, m.ready_at, m.id

-- :lines_of  In which lines these keys stand; to be locked before they are seized.
SELECT destination, order_key FROM {spool}.message
WHERE key = ANY(%(keys)b::bytea[]) AND order_key <> ''

-- :seize  Those of these that wait and are in nobody's hands, due or not. What an abandoned attempt left open stays open: it must not look as if it had never been.
WITH picked AS MATERIALIZED (
    SELECT {columns} FROM {spool}.message AS m
    WHERE m.key = ANY(%(keys)b::bytea[]) AND m.state = 0 AND m.leased_until <= %(now)s
    ORDER BY m.key FOR UPDATE OF m
), leased AS (
    UPDATE {spool}.message AS m
    SET attempt = m.attempt + 1, leased_until = %(until)s,
        seized = CASE WHEN m.leased_until = 0 OR m.seized = m.attempt
                      THEN m.attempt + 1 ELSE m.seized END,
        ready_at = CASE WHEN m.ready_at IS NOT NULL THEN greatest(m.due_at, %(until)s) END
    FROM picked WHERE m.id = picked.id
)
SELECT {picked}, b.request, NULL::bytea
FROM picked AS m LEFT JOIN {spool}.body AS b ON b.id = m.id

-- :expire  The oldest of those that are too old, and in nobody's hands.
WITH picked AS MATERIALIZED (
    SELECT {columns} FROM {spool}.message AS m
    WHERE m.state = 0 AND m.due_at <> {never} AND m.expires_at <= %(now)s
      AND m.leased_until <= %(now)s
    ORDER BY m.expires_at, m.id LIMIT %(limit)s FOR UPDATE OF m SKIP LOCKED
), leased AS (
    UPDATE {spool}.message AS m
    SET attempt = m.attempt + 1, leased_until = %(until)s,
        seized = CASE WHEN m.leased_until = 0 OR m.seized = m.attempt
                      THEN m.attempt + 1 ELSE m.seized END,
        ready_at = CASE WHEN m.ready_at IS NOT NULL THEN greatest(m.due_at, %(until)s) END
    FROM picked WHERE m.id = picked.id
)
SELECT {picked}, NULL::bytea, NULL::bytea FROM picked AS m ORDER BY m.expires_at, m.id

-- :settle  Verdicts, where the lease is still the latest and its entry can end so; gives the places of those that held. The attempt and the nonce are the fence.
WITH verdict AS (
    SELECT * FROM unnest(
        %(place)b::integer[], %(key)b::bytea[], %(attempt)b::integer[], %(nonce)b::bytea[],
        %(may)b::integer[], %(state)b::integer[], %(due_at)b::bigint[], %(keep_until)b::bigint[],
        %(answer_until)b::bigint[], %(sweep_at)b::bigint[], %(status)b::bytea[], %(answer)b::bytea[]
    ) AS v (
        place, key, attempt, nonce, may, state, due_at, keep_until, answer_until, sweep_at, status,
        answer
    )
), held AS MATERIALIZED (
    SELECT m.id, v.place, v.state, v.due_at, v.keep_until, v.answer_until, v.sweep_at, v.status,
           v.answer
    FROM verdict AS v JOIN {spool}.message AS m ON m.key = v.key
    WHERE m.attempt = v.attempt AND m.nonce = v.nonce AND (1 << m.state) & v.may <> 0
    ORDER BY m.key FOR UPDATE OF m
), ended AS (
    UPDATE {spool}.message AS m
    SET state = h.state, leased_until = 0, keep_until = h.keep_until, status = h.status,
        due_at = CASE WHEN h.due_at < 0 THEN m.due_at ELSE h.due_at END,
        ready_at = CASE WHEN h.state = 0 AND m.order_key = '' THEN nullif(h.due_at, {never}) END,
        answer_until = CASE WHEN h.answer_until < 0 THEN m.answer_until ELSE h.answer_until END,
        sweep_at = nullif(h.sweep_at, -1)
    FROM held AS h WHERE m.id = h.id AND h.state >= 0
), kept AS (
    UPDATE {spool}.body AS b
    SET request = NULL, answer = coalesce(nullif(h.answer, ''::bytea), b.answer)
    FROM held AS h WHERE b.id = h.id AND h.state > 0
), gone AS (
    DELETE FROM {spool}.message AS m USING held AS h WHERE m.id = h.id AND h.state < 0
), bodies AS (
    DELETE FROM {spool}.body AS b USING held AS h WHERE b.id = h.id AND h.state < 0
)
SELECT place FROM held

-- :renew  Hold leases that have not ended for longer; gives the places of those that held.
WITH wish AS (
    SELECT * FROM unnest(
        %(place)b::integer[], %(key)b::bytea[], %(attempt)b::integer[], %(nonce)b::bytea[]
    ) AS w (place, key, attempt, nonce)
), held AS MATERIALIZED (
    SELECT m.id, w.place FROM wish AS w JOIN {spool}.message AS m ON m.key = w.key
    WHERE m.attempt = w.attempt AND m.nonce = w.nonce AND m.leased_until > 0 AND m.state < 2
    ORDER BY m.key FOR UPDATE OF m
), longer AS (
    UPDATE {spool}.message AS m
    SET leased_until = %(until)s,
        ready_at = CASE WHEN m.ready_at IS NOT NULL THEN greatest(m.due_at, %(until)s) END,
        sweep_at = CASE WHEN m.sweep_at IS NOT NULL THEN greatest(m.keep_until, %(until)s) END
    FROM held WHERE m.id = held.id
)
SELECT place FROM held

-- :find  The entries of these keys, with their answers.
SELECT {columns}, NULL::bytea, b.answer
FROM {spool}.message AS m LEFT JOIN {spool}.body AS b ON b.id = m.id
WHERE m.key = ANY(%(keys)b::bytea[])

-- :place_of  Where in the order of acceptance this key is.
SELECT id FROM {spool}.message WHERE key = %(key)b

-- :browse  Entries in the order of acceptance; what is not asked for is NULL.
SELECT {columns}, CASE WHEN %(requests)s THEN b.request END, NULL::bytea
FROM {spool}.message AS m
LEFT JOIN {spool}.body AS b ON b.id = m.id AND %(requests)s
WHERE m.id > %(after)s AND m.state < 16
  AND (%(key)b::bytea IS NULL OR m.key = %(key)b)
  AND (%(destination)b::bytea IS NULL OR m.destination = %(destination)b)
  AND (%(name)b::bytea IS NULL OR m.name = %(name)b)
  AND (%(state)s::integer IS NULL OR m.state = %(state)s)
  AND (%(held)s::boolean IS NULL OR (m.state = 0 AND m.due_at = {never}) = %(held)s)
ORDER BY m.id LIMIT %(limit)s

-- :tally  What waits, by destination and age; slot -1 is what is held.
SELECT destination, slot, count(*), min(accepted_at) FROM (
    SELECT destination, accepted_at,
           CASE WHEN due_at = {never} THEN -1
                ELSE (SELECT count(*) FROM unnest(%(edges)b::bigint[]) AS edge
                      WHERE accepted_at < edge) END AS slot
    FROM {spool}.message WHERE state = 0
) AS waiting GROUP BY destination, slot

-- :sweep  Forget what was kept long enough: entries, or answers alone; gives how many.
WITH due AS MATERIALIZED (
    SELECT id, keep_until <= %(now)s AS whole FROM {spool}.message
    WHERE sweep_at <= %(now)s ORDER BY sweep_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {spool}.message AS m USING due WHERE m.id = due.id AND due.whole
), bodies AS (
    DELETE FROM {spool}.body AS b USING due WHERE b.id = due.id AND due.whole
), facts AS (
    UPDATE {spool}.message AS m SET sweep_at = m.keep_until
    FROM due WHERE m.id = due.id AND NOT due.whole
), answers AS (
    UPDATE {spool}.body AS b SET answer = NULL FROM due WHERE b.id = due.id AND NOT due.whole
)
SELECT count(*) FROM due

-- :line_of_rows  In which lines these rows stand.
SELECT destination, order_key FROM {spool}.message
WHERE id = ANY(%(ids)b::bigint[]) AND order_key <> ''

-- :set_aside  Out of everybody's way, with all their bytes.
UPDATE {spool}.message SET state = state + 16, ready_at = NULL, sweep_at = NULL
WHERE id = ANY(%(ids)b::bigint[]) AND state < 16 RETURNING id

-- :unreadable  Rows of a destination whose name is none.
SELECT id FROM {spool}.message
WHERE destination = %(destination)b AND ready_at IS NOT NULL LIMIT %(limit)s

-- :count_aside  How many were set aside.
SELECT count(*) FROM {spool}.message WHERE state >= 16

-- :damaged  What was set aside, page by page.
SELECT m.id, m.key, m.destination, m.name, m.accepted_at,
       length(m.status) + coalesce(length(b.request), 0) + coalesce(length(b.answer), 0)
FROM {spool}.message AS m LEFT JOIN {spool}.body AS b ON b.id = m.id
WHERE m.state >= 16 AND m.id > %(after)s ORDER BY m.id LIMIT %(limit)s

-- :discard  Of these rows, those that were set aside go for good; gives them.
WITH gone AS (
    DELETE FROM {spool}.message WHERE id = ANY(%(ids)b::bigint[]) AND state >= 16 RETURNING id
), bodies AS (
    DELETE FROM {spool}.body AS b USING gone WHERE b.id = gone.id
)
SELECT id FROM gone

-- :listen  Hear of others' batches; on a connection of its own.
LISTEN "{spool}"

-- :ring  Tell the others, once for a batch or several.
SELECT pg_notify('{spool}', %(who)s)

-- :measure  What this server, as it is set up now, gives; not what we have set in this transaction.
SELECT current_setting('server_version_num')::integer AS number,
       current_setting('server_version') AS version,
       current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit')
           AS synchronous_commit,
       current_setting('synchronous_standby_names') AS standbys,
       pg_is_in_recovery() AS standby,
       EXISTS (SELECT 1 FROM pg_catalog.pg_class AS c
               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
               WHERE n.nspname = '{spool}' AND c.relkind = 'r' AND c.relpersistence <> 'p')
           AS unlogged,
       (SELECT array_agg(c.relname::text) FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = '{spool}' AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')) AS relations,
       EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = '{spool}') AS exists

-- :is_about  Is there a table of ours that says whose the others are?
SELECT count(*) = 3 FROM information_schema.columns
WHERE table_schema = '{spool}' AND table_name = 'about'
  AND column_name IN ('program', 'form', 'oldest')

-- :about  Whose tables these are, in which form, and the oldest program that can work with them.
SELECT program, form, oldest FROM {spool}.about

-- :written  The form they have from now on.
UPDATE {spool}.about SET form = %(form)s, oldest = %(oldest)s

-- :lock_form  One at a time changes the form.
SELECT pg_advisory_xact_lock(%(lock_class)s::integer, -1)
