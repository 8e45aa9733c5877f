"""Text in pictures by RapidOCR, and documents: PDF, DOCX, PPTX."""
