-- Everything that OpusMax keeps. Read this first.
--
-- All times are integer milliseconds, UTC, since 1970; durations are milliseconds; tokens are model tokens.
-- No column holds a text that a client wrote: `name` and `models` come from the administrator, `model` is
-- a name out of the configuration or the upstream's own list of models (or the constant 'unknown').
-- The privacy page lists these columns from the live database; each has its line in gateway/core/policy.py.

-- One API key, as the administrator made it, and running totals of what it used.
CREATE TABLE key (
    id                   INTEGER PRIMARY KEY,              -- random, never given twice
    name                 TEXT    NOT NULL UNIQUE,          -- the administrator's label
    created              INTEGER NOT NULL,                 -- time
    expires              INTEGER,                          -- time; NULL = never
    disabled             INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    requests_per_minute  INTEGER CHECK (requests_per_minute > 0),  -- NULL = no limit, here and below
    tokens_per_minute    INTEGER CHECK (tokens_per_minute > 0),
    concurrency          INTEGER CHECK (concurrency > 0),  -- requests running at once
    overdraft            INTEGER NOT NULL DEFAULT 0 CHECK (overdraft >= 0),  -- tokens by which holds may pass a budget
    models               TEXT    NOT NULL DEFAULT '',      -- allowed models: globs, separated by spaces; '' = all
    last_used            INTEGER,                          -- time of the newest request
    total_requests       INTEGER NOT NULL DEFAULT 0,       -- settled requests
    total_input          INTEGER NOT NULL DEFAULT 0,       -- tokens, of all settled requests, here and below
    total_output         INTEGER NOT NULL DEFAULT 0,
    total_cache_write    INTEGER NOT NULL DEFAULT 0,
    total_cache_read     INTEGER NOT NULL DEFAULT 0,
    total_charge         INTEGER NOT NULL DEFAULT 0,       -- tokens that counted against budgets
    refused_inactive     INTEGER NOT NULL DEFAULT 0,       -- refused because the key was disabled or expired
    refused_model        INTEGER NOT NULL DEFAULT 0,       -- … the model is not allowed
    refused_size         INTEGER NOT NULL DEFAULT 0,       -- … the request can never fit a budget
    refused_budget       INTEGER NOT NULL DEFAULT 0,       -- … a budget was used up or too full
    refused_concurrency  INTEGER NOT NULL DEFAULT 0,       -- … too many requests were running
    refused_requests     INTEGER NOT NULL DEFAULT 0,       -- … too many requests in a minute
    refused_tokens       INTEGER NOT NULL DEFAULT 0        -- … too many tokens in a minute
) STRICT;

-- What proves a key: one row, or two for the grace time after `key rotate --grace`.
CREATE TABLE secret (
    key_id   TEXT    PRIMARY KEY,                          -- the public id, a part of the key itself
    key      INTEGER NOT NULL REFERENCES key (id) ON DELETE CASCADE,
    prefix   TEXT    NOT NULL,                             -- for display: sk-ant-om1-k7f3…
    hash     TEXT    NOT NULL,                             -- argon2id
    created  INTEGER NOT NULL,                             -- time
    expires  INTEGER                                       -- time; NULL = with its key
) STRICT, WITHOUT ROWID;

CREATE INDEX secret_by_key ON secret (key);

-- How many tokens a key may use in each rolling window, or in all.
CREATE TABLE budget (
    key     INTEGER NOT NULL REFERENCES key (id) ON DELETE CASCADE,
    window  INTEGER CHECK (window >= 1000),                -- duration; NULL = the key's whole life
    tokens  INTEGER NOT NULL CHECK (tokens > 0)
) STRICT;

CREATE UNIQUE INDEX budget_by_key ON budget (key, ifnull(window, 0));

-- The ledger: one row for each admitted request. It is opened at admission with what the request may use
-- at most (status NULL: in flight) and completed once, when its real usage is known.
-- Clustered by key and time, because every read of it is "the rows of this key since then".
CREATE TABLE request (
    key          INTEGER NOT NULL REFERENCES key (id) ON DELETE CASCADE,
    started      INTEGER NOT NULL,                         -- time of admission
    sequence     INTEGER NOT NULL,                         -- 0, 1, 2 … among requests of a key in one millisecond
    model        TEXT    NOT NULL,                         -- a known model's name, or 'unknown'
    status       INTEGER,                                  -- HTTP status; NULL = in flight
    latency      INTEGER,                                  -- duration to the end of the answer; NULL = not known
    input        INTEGER NOT NULL CHECK (input >= 0),      -- tokens, here and below
    output       INTEGER NOT NULL CHECK (output >= 0),
    cache_write  INTEGER NOT NULL CHECK (cache_write >= 0),
    cache_read   INTEGER NOT NULL CHECK (cache_read >= 0),
    estimated    INTEGER NOT NULL CHECK (estimated IN (0, 1)),  -- 0 = all four are the provider's own counts
    PRIMARY KEY (key, started, sequence)
) STRICT, WITHOUT ROWID;

-- Finds the rows that a crash left in flight without reading the whole ledger.
CREATE INDEX request_in_flight ON request (key, started, sequence) WHERE status IS NULL;

-- The same figures added up by hour, so that a history of millions of requests is shown at once.
CREATE TABLE usage_by_hour (
    key          INTEGER NOT NULL REFERENCES key (id) ON DELETE CASCADE,
    hour         INTEGER NOT NULL,                         -- time at which the hour began
    model        TEXT    NOT NULL,                         -- as in the requests, here and below
    status       INTEGER NOT NULL,
    requests     INTEGER NOT NULL,                         -- settled requests that started in this hour
    input        INTEGER NOT NULL,                         -- tokens, here and below
    output       INTEGER NOT NULL,
    cache_write  INTEGER NOT NULL,
    cache_read   INTEGER NOT NULL,
    charge       INTEGER NOT NULL,                         -- tokens that counted against budgets
    PRIMARY KEY (key, hour, model, status)
) STRICT, WITHOUT ROWID;

-- A request counts once, in the commit that settles it: in its key's totals and in its hour. Here and not in the
-- program, so that no way of settling a request can forget it.
CREATE TRIGGER request_settled AFTER UPDATE OF status ON request
WHEN old.status IS NULL AND new.status IS NOT NULL
BEGIN
    UPDATE key
    SET last_used = max(ifnull(last_used, 0), new.started),
        total_requests = total_requests + 1,
        total_input = total_input + new.input,
        total_output = total_output + new.output,
        total_cache_write = total_cache_write + new.cache_write,
        total_cache_read = total_cache_read + new.cache_read,
        total_charge = total_charge + new.input + new.output + new.cache_write + (new.cache_read + 9) / 10
    WHERE id = new.key;

    INSERT INTO usage_by_hour (key, hour, model, status, requests, input, output, cache_write, cache_read, charge)
    VALUES (
        new.key, new.started - new.started % 3600000, new.model, new.status,
        1, new.input, new.output, new.cache_write, new.cache_read,
        new.input + new.output + new.cache_write + (new.cache_read + 9) / 10
    )
    ON CONFLICT DO UPDATE
    SET requests = requests + 1,
        input = input + excluded.input,
        output = output + excluded.output,
        cache_write = cache_write + excluded.cache_write,
        cache_read = cache_read + excluded.cache_read,
        charge = charge + excluded.charge;
END;

-- At most one row: an erasure has begun and its last step is not done. Whoever sees it finishes it.
CREATE TABLE erasure (
    started  INTEGER NOT NULL                              -- time
) STRICT;

PRAGMA user_version = 1;
