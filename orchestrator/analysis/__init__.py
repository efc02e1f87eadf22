"""From records to tables to crossovers: reads Parquet and records, knows no ray, mlflow or
torch."""
