"""The stages of a conversion: analyse, plan, rewrite, merge, count."""
