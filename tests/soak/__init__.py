"""Nothing grows: subscribers and prefixes come and go for any length of time, and what the gateway holds stays flat."""
