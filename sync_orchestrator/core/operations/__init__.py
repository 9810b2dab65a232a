"""What operators and schedules do: status, redrive, repair, adoption, maintenance, retention."""
