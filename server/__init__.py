"""The consortium's side: enrolment, intake, aggregation, evaluation, release and rehearsal."""
