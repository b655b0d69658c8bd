"""What leaves the hospital: audited, reviewed, cleared by the gate, kept in the outbox."""
