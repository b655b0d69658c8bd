"""The hospital's side: ingest, private training, synthesis, the gate, and the daemon that speaks to the server."""
