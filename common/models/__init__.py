"""The models of a study: generator and critic, encoder, flow."""
