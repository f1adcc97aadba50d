"""OpusMax: a gateway in front of AI model providers that keeps only counts.

One request, walked:

    clients.py      the connections of clients: how many, how long, how much (core/heads.py: in what form)
    dispatch.py     the table of routes (app.py) looked up; where an error becomes an answer (responses.py)
    auth.py         whose key is it? (hashing.py proves it, keystore.py has the records)
    intake.py       the body, in good time and within the memory that there is
    core/parsing.py what the limits need to know of it (core/estimate.py: how large is it? core/openai_parsing.py)
    admission.py    is there room? (core/limits.py decides, history.py derives the limits from the ledger)
    reservation.py  what a running request holds, until it is settled
    upstreams.py    who takes it (core/routing.py decides, core/rests.py remembers; core/shared_budgets.py: may it?)
    upstream.py     the only outgoing HTTP (core/wire.py: which headers cross; pool.py, exchange.py, answer.py: how)
    relay.py        the straight path, from the key to the upstream's answer (lookups.py: what is free)
    passage.py      the way back: meter, settle, last bytes (streamed.py writes them, as they are)
    core/metering.py bytes -> usage (core/sse.py: bytes -> events; core/anthropic.py, openai.py: events -> counts)
    ledger.py       the one writer: rows in, shared commits (batches.py: what is written together)

Around it: server.py and process.py run it (tls.py, notify.py for systemd, metrics.py and figures.py for Prometheus,
handover.py for new credentials), logs.py cannot leak, request_ids.py joins its lines to answers, pages.py shows
people what is held about their key, cli.py is the administrator's command line, checkup.py looks for what is wrong,
erasure.py makes a deleted key disappear, upgrade.py brings older databases along, demo.py shows it all with the
simulated provider of simulator/.

`core` decides and does no I/O: no socket, file, clock or log can be imported there (core/ruff.toml).
"""
