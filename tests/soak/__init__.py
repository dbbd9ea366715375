"""Nothing grows: subscribers and prefixes come and go for as long as one likes, and what is held stays flat."""
