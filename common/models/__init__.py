"""Networks only; they know no plan, no patient and no privacy."""
