"""The consortium's side: enrolment, intake, aggregation, evaluation, the release, and the rehearsal."""
