"""Single images, privatized one by one on site; none of them enters the outbox."""
