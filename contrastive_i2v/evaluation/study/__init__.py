"""Human preference: raters compare two folders of videos, pair by pair, and justify their choice (JUICE)."""
