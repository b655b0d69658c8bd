"""What one side did, in order, chained and signed; it never holds a number of patients."""
