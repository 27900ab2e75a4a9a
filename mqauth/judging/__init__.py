"""How a delivery is judged; ``delivery`` says what one is and how far it has come."""
