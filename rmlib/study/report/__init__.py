"""Tables, claims and pages made from records."""
