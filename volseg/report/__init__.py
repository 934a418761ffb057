"""PatientResult -> what people read: tables, pictures, one self-contained HTML file."""
