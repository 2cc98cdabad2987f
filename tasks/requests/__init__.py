"""requests_raw and requests_prefill: harmful requests of the user's own, plain and prefilled."""
